"""Start Ray Serve and the page on this machine, say where they are, and end them on Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2
import psutil

from serve_app.launcher.environment import ray_environment
from serve_app.launcher.haproxy import LOOPBACK
from serve_app.paths import ROOT
from serve_app.release import serve_config
from serve_app.release.rollout import DeployError, ServeApi, previous_config
from serve_app.release.serve_config import ConfigError

DEPLOY_TIMEOUT_S = 300
DOWNLOAD_TIMEOUT_S = 60
PAGE_TIMEOUT_S = 60
DRAIN_TIMEOUT_S = 35  # a request may take 30 (limits.deadline_s of the Ingress)
LOG_TIMEOUT_S = 30
STOP_TIMEOUT_S = 15


class StartError(Exception):
    """Why it could not start, in one sentence."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: stop, but finish the requests under way and write their rows first."""


def main(config_file: Path, weights: str, host: str, port: int, page_port: int | None) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        config_file: Serve config file.
        weights: ``auto``, ``imagenet``, ``demo``, or ``config`` for what the file says.
        host: Where API and page listen.
        port: Of the API.
        page_port: Of the page; None starts no page.
    """
    end_on_signals()
    started = time.monotonic()
    try:
        check_ports(PORT=port, **({} if page_port is None else {"PAGE_PORT": page_port}))
        config = read_config(config_file, port, weights)
        with contextlib.ExitStack() as stack:
            api, dashboard = stack.enter_context(serving(config, port, host))
            page_url = "not started" if page_port is None else stack.enter_context(page(api, page_port, host))
            say(f"ready in {time.monotonic() - started:.0f} s")
            print(
                f"\n  page  {page_url}\n  API   {api}  (try {api}/docs)\n"
                f"\n  Ctrl-C stops both. Live changes: make deploy CONFIG=configs/local.yaml ADDRESS={dashboard}\n",
                flush=True,
            )
            while True:
                time.sleep(1)
    except KeyboardInterrupt:
        pass
    except (StartError, ConfigError, DeployError) as error:
        sys.exit(f"error: {error}")


def say(what: str) -> None:
    """Tell the user what is being done."""
    print(f"· {what}", flush=True)


def check_ports(**ports: int) -> None:
    """Refuse to start where something listens already.

    Raises:
        StartError: Names the port and the way out.
    """
    for flag, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise StartError(
                    f"port {port} cannot be used ({error.strerror}): stop {listener(port)}, "
                    f"or choose another port with `make run {flag}=…`"
                ) from None


def listener(port: int) -> str:
    """Name what listens on a port; HAProxy outlives a service that was killed."""
    with contextlib.suppress(psutil.Error):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr[1:2] == (port,) and each.pid:
                return f"{psutil.Process(each.pid).name()} (process {each.pid})"
    return "the program that listens there"


def read_config(path: Path, port: int, weights: str) -> dict[str, Any]:
    """Read a Serve config file and fill in what the command line decides.

    Raises:
        ConfigError: The file is missing or no Serve config.
    """
    config = serve_config.read(path)
    if not config["applications"]:
        raise ConfigError(f"{path} cannot be read as a Serve config: its list of `applications` is empty")
    config["http_options"] = {**config.get("http_options", {}), "port": port}
    alone = [app for app in config["applications"] if app.get("import_path") == serve_config.APP]
    if alone and weights != "config":
        chosen = choose_weights() if weights == "auto" else weights
        for app in alone:  # several variants stay as the file has them
            app["args"] = {**app.get("args", {}), "weights": chosen}
    return config


def choose_weights() -> str:
    """Return ``imagenet`` where its weights are cached or quickly downloaded, else ``demo``; say which."""
    try:
        command = [sys.executable, "-m", "serve_app.launcher.imagenet"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
        reason = found.stderr.strip().rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        reason, found = f"not within {DOWNLOAD_TIMEOUT_S} s", None
    if found is not None and found.returncode == 0:
        say("weights: imagenet, one thousand classes")
        return "imagenet"
    say(f"weights: demo, ten everyday classes; ImageNet's cannot be had ({reason})")
    return "demo"


@contextlib.contextmanager
def serving(config: dict[str, Any], port: int, host: str = LOOPBACK) -> Iterator[tuple[str, str]]:
    """Run a Ray of our own with this config; gives the addresses of API and Ray dashboard once both answer.

    Raises:
        ConfigError: The config is not valid.
        DeployError: An application fails to deploy.
        StartError: The API does not answer.
    """
    say("starting Ray")
    ours: list[psutil.Process] = []
    folder = tempfile.TemporaryDirectory(prefix="serve-app-")
    try:
        for name, value in ray_environment(Path(folder.name), host, port).items():
            os.environ.setdefault(name, value)
        behind_haproxy = os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"  # it alone is to be reached, not the replicas
        config["http_options"]["host"] = LOOPBACK if behind_haproxy else host
        import ray  # after the environment: Ray reads it on import

        context = ray.init(
            address="local",
            dashboard_host=LOOPBACK,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        end_on_signals()  # Ray has put its own in their place
        say("deploying ingress, preprocess and classify")
        dashboard = f"http://{context.dashboard_url}"
        serve_config.check(config)
        cluster = ServeApi(dashboard)
        cluster.apply(config, DEPLOY_TIMEOUT_S)
        api = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx2.get(f"{api}/readyz").status_code == 200, DEPLOY_TIMEOUT_S, "the API")
        try:
            yield api, dashboard
        except Terminated:
            drain()
            close_log(cluster)
            raise
    finally:
        say("stopping")
        ours = psutil.Process().children(recursive=True)
        with ignoring_interrupts():
            with contextlib.suppress(Exception):  # a Ray that is half gone is ended below
                ray.shutdown()
            end(ours)
        folder.cleanup()


def drain() -> None:
    """Shut the door: HAProxy takes no new requests, lets those under way finish, and ends.

    Taking the application away would stop all its stages at once, under the images that still need them.
    """
    say("finishing the requests under way")
    doors = [process for process in psutil.Process().children(recursive=True) if process.name() == "haproxy"]
    for door in doors:
        door.send_signal(signal.SIGUSR1)
    psutil.wait_procs(doors, DRAIN_TIMEOUT_S)


def close_log(cluster: ServeApi) -> None:
    """Have the rows written that wait for the prediction log; Ray's own end takes them with the replicas."""
    try:
        config = previous_config(cluster.state())
        tunings = [serve_config.user_config(app, "Ingress") for app in config["applications"]]
        if logged := [tuning for tuning in tunings if tuning.get("prediction_log")]:
            say("writing what waits for the prediction log")
            for tuning in logged:
                tuning["prediction_log"] = None
            cluster.apply(config, LOG_TIMEOUT_S)
    except DeployError as error:
        say(f"the prediction log lacks its last rows: {error}")


@contextlib.contextmanager
def page(api: str, port: int, host: str = LOOPBACK) -> Iterator[str]:
    """Run the Streamlit page against an API; gives its address once it answers.

    Raises:
        StartError: It ended, or did not answer in time.
    """
    say("starting the page")
    listen = [f"--server.address={host}", f"--server.port={port}"]
    command = [sys.executable, "-m", "streamlit", "run", "frontend/app.py", *listen]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "API_URL": api}, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: httpx2.get(f"{url}/_stcore/health").status_code == 200, PAGE_TIMEOUT_S, "the page", process)
        yield url
    finally:
        end([psutil.Process(process.pid)] if process.poll() is None else [])


def wait_until(done: Any, timeout_s: float, what: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Poll until ``done()`` is true; connection errors count as not yet.

    Raises:
        StartError: Not in time, or the process ended meanwhile.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.HTTPError):
            if done():
                return
        if process is not None and process.poll() is not None:
            raise StartError(f"{what} ended with exit code {process.returncode}; its output is above")
        time.sleep(0.2)
    raise StartError(f"{what} did not answer within {timeout_s:.0f} s")


def end(processes: list[psutil.Process]) -> None:
    """Ask processes to end, wait, and kill what is left."""
    for force in (False, True):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill() if force else process.terminate()
        _, processes = psutil.wait_procs(processes, STOP_TIMEOUT_S)


@contextlib.contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Let the clean-up finish: an impatient second Ctrl-C would leave processes behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_on_signals() -> None:
    """Stop in an orderly way on Ctrl-C, on SIGTERM and when the terminal closes; a background job ignores SIGINT."""
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
