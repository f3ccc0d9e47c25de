"""The whole service as a user starts it: `make run`, in processes of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from serve_app.launcher.environment import free_port
from tests.support.paths import ROOT

START_TIMEOUT_S = 240


@dataclass(frozen=True)
class Running:
    """Where a started service is.

    Attributes:
        api: Base URL of the HTTP API.
        page: URL of the page.
        dashboard: URL of Ray.
        output: What the launcher has printed so far.
        process: make, above the launcher.
        mark: In the environment of every process that it started.
    """

    api: str
    page: str
    dashboard: str
    output: Path
    process: subprocess.Popen[bytes]
    mark: str

    def interrupt(self, timeout_s: float = 60) -> int:
        """Press Ctrl-C, which a terminal sends to all of the foreground, and wait for the end."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout_s)

    def survivors(self) -> list[str]:
        """Processes of this service that are still there."""
        return [" ".join(process.cmdline()) for process in self.processes()]

    def processes(self) -> list[psutil.Process]:
        """Everything that this service has started and that is still there."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SERVE_APP_TEST") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@contextmanager
def start(*variables: str) -> Iterator[Running]:
    """Run `make run` with the demo model on free ports, and more variables if wanted; end it, whatever happens."""
    mark, port, page_port = uuid.uuid4().hex, free_port(), free_port()
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as output:
        process = subprocess.Popen(
            ["make", "run", f"PORT={port}", f"PAGE_PORT={page_port}", "WEIGHTS=demo", *variables],
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, "SERVE_APP_TEST": mark, "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            text = _wait_for(output.name, "Ctrl-C stops both", process)
            (dashboard,) = re.findall(r"ADDRESS=(\S+)", text)
            urls = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{page_port}"
            yield Running(*urls, dashboard, Path(output.name), process, mark)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


def _wait_for(path: str, words: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        text = Path(path).read_text()
        if words in text:
            return text
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"the service did not start; it said:\n{text}")
