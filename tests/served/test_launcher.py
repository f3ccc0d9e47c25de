"""The run command from start to Ctrl-C."""

from __future__ import annotations

import subprocess
import sys

import httpx2

from tests.running import ROOT, Running, start


def test_ctrl_c_leaves_no_process() -> None:
    """Page and API are up; Ctrl-C in the terminal ends everything that was started, without a traceback."""
    with start() as service:
        assert httpx2.get(f"{service.api}/readyz").status_code == 200
        assert httpx2.get(service.page).status_code == 200
        assert len(service.survivors()) > 5
        service.interrupt()
        assert service.survivors() == []
        assert "Traceback" not in service.output.read_text()


def test_a_busy_port_ends_the_start_with_one_sentence(running: Running) -> None:
    port = running.api.rpartition(":")[2]
    command = [sys.executable, "-m", "serve_app", "--port", port, "--page-port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port {port} cannot be used")
    assert len(done.stderr.splitlines()) == 1
