"""The run command from start to Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx2
import pytest

from tests.support.paths import ROOT
from tests.support.running import Running


@pytest.mark.skipif(sys.platform != "linux", reason="the idle scheduling class is Linux's own")
def test_replicas_leave_idle_scheduling(running: Running) -> None:
    """Each thread of every replica runs in the scheduling class of this process once the service is ready."""
    replicas = [process for process in running.processes() if "ServeReplica" in process.cmdline()[0]]
    assert len(replicas) == 4
    threads = [thread.id for process in replicas for thread in process.threads()]
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.sched_getscheduler(0)}


@pytest.mark.ends_service
def test_ctrl_c_leaves_no_process(running: Running) -> None:
    """Page and API answer; Ctrl-C in the terminal ends every process that was started, without a traceback."""
    assert httpx2.get(f"{running.api}/readyz").status_code == 200
    assert httpx2.get(running.page).status_code == 200
    assert len(running.survivors()) > 5
    running.interrupt()
    assert running.survivors() == []
    assert "Traceback" not in running.output.read_text()


def test_a_busy_port_ends_the_start_with_one_sentence(running: Running) -> None:
    port = running.api.rpartition(":")[2]
    command = [sys.executable, "-m", "serve_app", "run", "--port", port, "--page-port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port {port} cannot be used")
    assert len(done.stderr.splitlines()) == 1
