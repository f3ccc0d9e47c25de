"""Starts the service as a user does, with ``make run``, in processes of its own."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from serve_app.launcher.environment import free_port
from serve_app.paths import DATA_VARIABLE
from serve_app.release.serve_config import Config
from tests.support.configs import local, with_weights, write
from tests.support.paths import ROOT
from tests.support.weights import tiny

START_TIMEOUT_S = 240
STOP_TIMEOUT_S = 60
# Set by a make that runs the tests; the make that a test starts must not take the outer one's arguments.
OUTER_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
# Ray's defaults suit a cluster behind a load balancer; these suit one machine that is busy with tests.
RAY_IN_TESTS = {
    # A stopped ingress replica stays for 30 s so that a load balancer can forget it. HAProxy needs less than 1 s.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    # A replica whose constructor raises is started three times. Our errors are the same each time.
    "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",
    # A proxy that isn't ready after 5 s is killed, and the start fails.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # The controller takes the next step of an update twice a second (configs/ray.env).
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.1",
}


@dataclass(frozen=True)
class Running:
    """A started service.

    Attributes:
        api: Base URL of the HTTP API.
        page: URL of the page.
        dashboard: URL of Ray's dashboard.
        output: File with what the launcher has printed so far.
        process: ``make``, the parent of the launcher.
        mark: Value of SERVE_APP_TEST in the environment of each of the service's processes.
    """

    api: str
    page: str
    dashboard: str
    output: Path
    process: subprocess.Popen[bytes]
    mark: str

    def interrupt(self) -> int:
        """Send SIGINT to the foreground process group, as Ctrl-C does; return make's exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(STOP_TIMEOUT_S)

    def terminate(self) -> int:
        """Send SIGTERM to the launcher, as a container's stop does; return make's exit status."""
        (launcher,) = psutil.Process(self.process.pid).children()
        launcher.terminate()
        return self.process.wait(STOP_TIMEOUT_S)

    def survivors(self) -> list[str]:
        """Return the command lines of this service's processes that are alive."""
        return [" ".join(process.cmdline()) for process in self.processes()]

    def processes(self) -> list[psutil.Process]:
        """Return the processes that this service started and that are alive."""
        alive = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SERVE_APP_TEST") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return alive


@contextmanager
def start(
    config: Config | None = None,
    *,
    page: bool = True,
    host: str = "127.0.0.1",
    weights: str = "tiny",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Run ``make run`` on free ports, and stop it when the block ends.

    Args:
        config: What to serve; by default configs/local.yaml.
        page: Whether to start the page.
        host: Address on which API and page listen.
        weights: As in ``make run WEIGHTS=…``, or ``tiny``: a model that is made for tests.
        environment: Variables in addition to those of this process and ``RAY_IN_TESTS``; SERVE_APP_DATA is a folder
            that the end of the block deletes.

    Raises:
        RuntimeError: The service did not start; the message holds its output.
    """
    config = config or local()
    if weights == "tiny":
        config, weights = with_weights(config, tiny()), "config"
    mark, port, page_port = uuid.uuid4().hex, free_port(), free_port()
    variables = {"HOST": host, "PORT": port, "PAGE_PORT": page_port, "WEIGHTS": weights}
    with tempfile.TemporaryDirectory(prefix="running-") as folder, (Path(folder) / "output").open("w") as output:
        arguments = f"--config {write(_quick_to_stop(config), Path(folder))}" + (" --no-page" * (not page))
        process = subprocess.Popen(
            ["make", "run", *(f"{name}={value}" for name, value in variables.items()), f"ARGS={arguments}"],
            cwd=ROOT,
            start_new_session=True,
            env=service_environment({DATA_VARIABLE: f"{folder}/data", **(environment or {}), "SERVE_APP_TEST": mark}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            text = _wait_for(output.name, "Ctrl-C stops", process)
            (dashboard,) = re.findall(r"(?:ADDRESS=|--address )(\S+)", text)
            urls = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{page_port}"
            yield Running(*urls, dashboard, Path(output.name), process, mark)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(STOP_TIMEOUT_S)


def service_environment(added: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a service: ours without an outer make's arguments, RAY_IN_TESTS, and ``added``."""
    inherited = {name: value for name, value in os.environ.items() if name not in OUTER_MAKE}
    return RAY_IN_TESTS | inherited | {"PYTHONUNBUFFERED": "1"} | added


def _quick_to_stop(config: Config) -> Config:
    """Return a copy in which a replica that stops looks every 0.5 s whether its requests are done, not every 2 s."""
    copied = copy.deepcopy(config)
    for app in copied["applications"]:
        for deployment in app["deployments"]:
            deployment.setdefault("graceful_shutdown_wait_loop_s", 0.5)
    return copied


def _wait_for(path: str, words: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        text = Path(path).read_text()
        if words in text:
            return text
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"the service did not start; its output:\n{text}")
