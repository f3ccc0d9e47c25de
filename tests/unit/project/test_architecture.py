"""Importing the project has no effect; import-linter (`make check`) holds who imports whom."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.paths import ROOT

PROGRAM = (
    "import sys\n"
    "def hook(event, args):\n"
    "    writes = event == 'open' and set(args[1] or '') & set('wax+') and '__pycache__' not in str(args[0])\n"
    "    if writes or event in ('socket.connect', 'os.mkdir'): print(event, args)\n"
    "sys.path.insert(0, sys.argv[1])\n"
    "import ray, torch, torchvision, fastapi_offline, yaml, psutil, httpx2, fsspec, typer, numba\n"
    "sys.addaudithook(hook)\n"
    "import serve_app.app, serve_app.cli.main, serve_app.launcher.local, serve_app.release.deploy\n"
    "import serve_app.training.train, serve_app.training.evaluate, serve_app.inference.quantize\n"
)


def test_importing_has_no_effect(tmp_path: Path) -> None:
    """Importing the graph and the commands opens no socket and writes no file."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


def test_every_package_has_a_layer() -> None:
    """A new package or module of serve_app has to be placed in the layers of import-linter."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    placed = {module.strip() for layer in layers for module in layer.split("|")}
    modules = {
        f"serve_app.{path.stem}"
        for path in (ROOT / "serve_app").iterdir()
        if (path.is_dir() and (path / "__init__.py").exists()) or (path.suffix == ".py" and path.stem != "__init__")
    }
    assert modules == placed
