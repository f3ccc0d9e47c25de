"""The run command from start to Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pyarrow.parquet as pq

from serve_app.observability.prediction_log import RAW
from tests.conftest import make_photo
from tests.support.configs import local, tuned, write
from tests.support.paths import ROOT
from tests.support.running import Running, start


def test_ctrl_c_leaves_no_process() -> None:
    """Page and API are up; Ctrl-C in the terminal ends everything that was started, without a traceback."""
    with start() as service:
        assert httpx2.get(f"{service.api}/readyz").status_code == 200
        assert httpx2.get(service.page).status_code == 200
        assert len(service.survivors()) > 5
        replicas = [each for each in service.processes() if "ServeReplica" in each.cmdline()[0]]
        assert len(replicas) == 3
        if sys.platform == "linux":  # none is still as low as it started
            threads = [thread.id for each in replicas for thread in each.threads()]
            assert {os.sched_getscheduler(thread) for thread in threads} == {os.sched_getscheduler(0)}
        service.interrupt()
        assert service.survivors() == []
        assert "Traceback" not in service.output.read_text()


def test_a_stop_lets_requests_finish_and_loses_no_row(tmp_path: Path) -> None:
    """SIGTERM to the launcher, as containers are stopped: all under way is answered and logged, then gone."""
    config = tuned(local(), "Ingress", prediction_log={"folder": str(tmp_path / "log"), "flush_s": 600})
    files = [("images", (f"{i}.jpg", make_photo(i, 2400, 1800))) for i in range(48)]
    with start(f"ARGS=--config {write(config, tmp_path)}") as service, ThreadPoolExecutor(1) as pool:
        (launcher,) = psutil.Process(service.process.pid).children()
        answer = pool.submit(httpx2.post, f"{service.api}/v1/classify", files=files, timeout=60)
        while httpx2.get(f"{service.api}/v1/status").json()["images"]["in_flight"] == 0:
            time.sleep(0.05)
        launcher.terminate()
        assert not answer.done()
        assert answer.result().json()["summary"] == {"ok": 48, "failed": 0}
        assert service.process.wait(60) == 0
        assert len(pq.read_table(tmp_path / "log" / RAW)) == 48
        assert service.survivors() == []


def test_a_busy_port_ends_the_start_with_one_sentence(running: Running) -> None:
    port = running.api.rpartition(":")[2]
    command = [sys.executable, "-m", "serve_app", "run", "--port", port, "--page-port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port {port} cannot be used")
    assert len(done.stderr.splitlines()) == 1
