"""Start Ray Serve and the page on this machine, print their addresses, and stop both on Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import itertools
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
from typing import Any

import psutil
import typer

from serve_app.config import WeightsConfig
from serve_app.console import say
from serve_app.exposure import reachable_host
from serve_app.inference.card import load_card
from serve_app.inference.weights import find_imagenet
from serve_app.launcher import data
from serve_app.launcher.environment import HAPROXY_CONFIG, ray_environment
from serve_app.launcher.haproxy import LOOPBACK, LOOPBACK_6, error_file, has_loopback_6
from serve_app.launcher.processes import (
    StartError,
    Terminated,
    end,
    ignore_interrupts,
    page,
    raise_on_signals,
    wait_until_ok,
)
from serve_app.paths import IS_CHECKOUT
from serve_app.release import serve_config
from serve_app.release.rollout import DeployError, ServeApi, previous_config
from serve_app.release.serve_config import ConfigError

DEPLOY_TIMEOUT_S = 300
DOWNLOAD_TIMEOUT_S = 60
DRAIN_TIMEOUT_S = 35  # a request may take 30 s (limits.deadline_s of the Ingress)
LOG_TIMEOUT_S = 30


def main(
    config_file: Path,
    weights: str,
    host: str,
    port: int,
    page_port: int | None,
    is_open: bool = False,
    keeps_log: bool = True,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        config_file: Serve config file.
        weights: ``auto``, ``imagenet``, ``demo``, or ``config`` for the config file's choice.
        host: Address on which API and page listen.
        port: Port of the API.
        page_port: Port of the page; None starts no page.
        is_open: Let everybody call who reaches the API, as ``open: true`` in the config file does.
        keeps_log: Keep prediction log and votes, where the config file says so.
    """
    raise_on_signals()
    started = time.monotonic()
    try:
        check_ports(PORT=port, **({} if page_port is None else {"PAGE_PORT": page_port}))
        config = read_config(config_file, port, weights)
        if is_open:
            open_to_all(config)
        if not keeps_log:
            data.switch_off(config)
        serve_config.check_access(config, reachable_host(host))
        for app in config["applications"]:
            if chosen := serve_config.configured_weights(app):
                say(describe_weights(WeightsConfig.model_validate(chosen).source))
        with contextlib.ExitStack() as stack:
            api, dashboard = stack.enter_context(serving(config, port, host))
            page_url = "not started" if page_port is None else stack.enter_context(page(api, page_port, host))
            say(f"ready in {time.monotonic() - started:.0f} s")
            typer.echo(
                f"\n  page  {page_url}\n  API   {api}  (try {api}/docs)\n  data  {data.describe(config)}\n"
                f"\n  Ctrl-C stops both. Live changes: {deploy_command(config_file, dashboard)}\n"
            )
            while True:
                signal.pause()
    except KeyboardInterrupt:
        pass
    except (StartError, ConfigError) as error:
        sys.exit(f"error: {error}")


def deploy_command(config_file: Path, dashboard: str) -> str:
    """Return the command that brings a changed config to the running service."""
    if IS_CHECKOUT:
        return f"make deploy CONFIG=configs/local.yaml ADDRESS={dashboard}"
    return f"copy {config_file}, change the copy, run serve-app deploy COPY --address {dashboard}"


def check_ports(**ports: int) -> None:
    """Check that nothing listens on the ports of API and page.

    Args:
        ports: Each port, under the name of its variable of `make run`.

    Raises:
        StartError: Names the port, the program that uses it and the way out.
    """
    addresses = {LOOPBACK: socket.AF_INET} | ({LOOPBACK_6: socket.AF_INET6} if has_loopback_6() else {})
    for (variable, port), (address, family) in itertools.product(ports.items(), addresses.items()):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                option = "--" + variable.lower().replace("_", "-")
                raise StartError(
                    f"port {port} cannot be used ({error.strerror}): stop {listener(port)}, "
                    f"or choose another port with `make run {variable}=…` or `serve-app run {option} …`"
                ) from None


def listener(port: int) -> str:
    """Name the program that listens on a port, often a HAProxy that outlived a killed service."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,) and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return "the program that listens there"


def read_config(path: Path, port: int, weights: str) -> dict[str, Any]:
    """Return a Serve config file with the port and the weights of the command line.

    Raises:
        ConfigError: The file is missing or no Serve config.
    """
    config = serve_config.read(path)
    if not config["applications"]:
        raise ConfigError(f"{path} cannot be read as a Serve config: its list of `applications` is empty")
    config["http_options"] = {**config.get("http_options", {}), "port": port}
    # A config of several variants (other import paths) keeps the weights that the file gives each.
    single_variant = [app for app in config["applications"] if app.get("import_path") == serve_config.APP]
    if single_variant and weights != "config":
        chosen = choose_weights() if weights == "auto" else weights
        for app in single_variant:
            app["args"] = {**app.get("args", {}), "weights": chosen}
    return config


def open_to_all(config: dict[str, Any]) -> None:
    """Set ``open: true`` for each ingress."""
    for app in config["applications"]:
        if app.get("import_path") in (serve_config.APP, serve_config.INGRESS):
            deployments = app.setdefault("deployments", [])
            if not any(deployment["name"] == "Ingress" for deployment in deployments):
                deployments.append({"name": "Ingress"})
            for deployment in deployments:
                if deployment["name"] == "Ingress":
                    deployment["user_config"] = {**(deployment.get("user_config") or {}), "open": True}


def choose_weights() -> str:
    """Return ``imagenet`` if its weights are cached or download within a minute, else ``demo`` after saying why."""
    if find_imagenet(load_card(WeightsConfig(source="imagenet")).sha256):
        return "imagenet"
    # The command ends by itself, because a killed one leaves its partial download behind.
    command = [sys.executable, "-m", "serve_app.inference.imagenet_download", str(DOWNLOAD_TIMEOUT_S)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S + 15)
    except subprocess.TimeoutExpired:
        reason = f"the download took more than {DOWNLOAD_TIMEOUT_S} s"
    else:
        if done.returncode == 0:
            return "imagenet"
        reason = done.stderr.strip().rpartition("\n")[2]
    say(f"ImageNet's weights are not available ({reason})")
    return "demo"


def describe_weights(name: str) -> str:
    """Say which model answers, and how to choose another."""
    if name == "imagenet":
        return "weights: imagenet, one thousand classes; WEIGHTS=demo (--weights demo) chooses the everyday ones"
    if name == "demo":
        classes = len(load_card(WeightsConfig(source="demo")).labels)
        other = "WEIGHTS=imagenet (--weights imagenet) chooses ImageNet's thousand"
        return f"weights: demo, {classes} everyday classes; {other}"
    return f"weights: {name}"


@contextlib.contextmanager
def serving(config: dict[str, Any], port: int, host: str = LOOPBACK) -> Iterator[tuple[str, str]]:
    """Run a Ray of our own with this config.

    Yields:
        The URLs of the API and of the Ray dashboard, once both answer.

    Raises:
        ConfigError: The config is not valid.
        StartError: Ray or HAProxy does not start as intended, an application fails, or the API does not answer.
    """
    say("starting Ray")
    folder = tempfile.TemporaryDirectory(prefix="serve-app-")
    try:
        for name, value in ray_environment(Path(folder.name), host).items():
            os.environ.setdefault(name, value)
        data.create_folder()
        os.environ.update(data.environment(config))
        behind_haproxy = os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"  # replicas then listen on loopback only
        config["http_options"]["host"] = LOOPBACK if behind_haproxy else host
        import ray  # after the environment: Ray reads it on import

        context = ray.init(address="local", dashboard_host=LOOPBACK, log_to_driver=False, logging_level=logging.ERROR)
        raise_on_signals()
        check_node_address(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call] # Ray leaves it so
        say("deploying ingress, preprocess and classify")
        dashboard = f"http://{context.dashboard_url}"
        serve_config.check(config)
        cluster = ServeApi(dashboard)
        try:
            cluster.apply(config, DEPLOY_TIMEOUT_S)
        except DeployError as error:  # Ray waits for HAProxy, and does not say why it fails
            raise StartError(haproxy_failure() or str(error)) from None
        api = f"http://127.0.0.1:{port}"
        wait_until_ok(f"{api}/readyz", DEPLOY_TIMEOUT_S, "the API", haproxy_failure)
        try:
            yield api, dashboard
        except Terminated:
            drain()
            close_log(cluster)
            raise
    finally:
        say("stopping")
        children = psutil.Process().children(recursive=True)
        with ignore_interrupts():
            with contextlib.suppress(Exception):  # a Ray that is half gone is ended below
                ray.shutdown()
            end(children)
        folder.cleanup()


def check_node_address(address: str) -> None:
    """Check that Ray keeps its node, and so its own ports, on loopback.

    Raises:
        StartError: Ray took an address of the network.
    """
    if not address.startswith("127."):
        raise StartError(
            f"Ray listens on {address}, open to the network, although RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0: see "
            "docs/security.md, and look in ray/_private/services.py for what sets the node's address"
        )


def haproxy_failure() -> str | None:
    """Return why HAProxy cannot start, as the program in its place wrote it; None if it wrote nothing.

    Ray moves HAProxy's files into a folder that it names after the node.
    """
    config = Path(os.environ[HAPROXY_CONFIG])
    reasons = sorted(config.parent.rglob(error_file(config).name))
    return reasons[0].read_text() if reasons else None


def drain() -> None:
    """Have HAProxy finish the requests in flight, take no new ones, and end.

    Deleting the application would stop all stages at once, while images in flight still need them.
    """
    say("finishing the requests in flight")
    proxies = [process for process in psutil.Process().children(recursive=True) if process.name() == "haproxy"]
    for proxy in proxies:
        proxy.send_signal(signal.SIGUSR1)  # HAProxy's soft stop
    psutil.wait_procs(proxies, DRAIN_TIMEOUT_S)


def close_log(cluster: ServeApi) -> None:
    """Write the buffered rows of the prediction log; ray.shutdown() kills the replicas that buffer them."""
    try:
        config = previous_config(cluster.state())
        ingress_configs = [serve_config.user_config(app, "Ingress") for app in config["applications"]]
        if logging_configs := [ingress for ingress in ingress_configs if ingress.get("prediction_log")]:
            say("writing the buffered rows of the prediction log")
            for ingress in logging_configs:
                ingress["prediction_log"] = None
            cluster.apply(config, LOG_TIMEOUT_S)
    except DeployError as error:
        say(f"the prediction log lacks its last rows: {error}")
