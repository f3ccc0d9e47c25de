"""A client that openapi-python-client generates, in a virtual environment of its own: it needs an older typer."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

GENERATOR = "openapi-python-client==0.29.1"
PACKAGE = "generated"


@dataclass(frozen=True)
class GeneratedClient:
    """A generated package.

    Attributes:
        folder: Holds the package ``generated``.
        python: An interpreter that can import what the package needs, and nothing of ours.
        warnings: What the generator printed about parts of the document that it left out.
    """

    folder: Path
    python: Path
    warnings: list[str]

    def run(self, program: str, *arguments: str) -> str:
        """Run a program that imports the package; return what it printed."""
        command = [str(self.python), "-c", program, *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout


def generate(url: str, folder: Path) -> GeneratedClient:
    """Generate a client of the service at ``url``; skip the test where no package index answers, except in CI."""
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", GENERATOR]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode and "CI" not in os.environ:
        pytest.skip(f"{GENERATOR} cannot be installed: {installed.stderr[-200:]}")
    assert installed.returncode == 0, installed.stderr
    options = ["--url", f"{url}/openapi.json", "--meta", "none", "--output-path", str(folder / PACKAGE)]
    done = subprocess.run(
        [str(environment / "bin" / "openapi-python-client"), "generate", *options],
        cwd=folder,
        env={**os.environ, "PATH": f"{environment / 'bin'}:{os.environ['PATH']}"},  # it formats with the ruff beside it
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    return GeneratedClient(folder, python, [line for line in lines if line.startswith(("WARNING", "Unsupported"))])
