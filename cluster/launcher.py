"""Ray's cluster launcher: the config file rendered from ec2.yaml, the `ray` commands, ssh tunnels to the head."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.settings import ClusterError, Settings
from serve_app.launcher.environment import free_port, read_ray_env
from serve_app.paths import ROOT

TEMPLATE = ROOT / "cluster" / "ec2.yaml"
RAY_CLI = (sys.executable, "-m", "ray.scripts.scripts")
TUNNEL_TIMEOUT_S = 60
TOOLS = {"aws": "the AWS command line, version 2", "ssh": "OpenSSH", "rsync": "rsync"}
RUN_PAGE = (
    "docker run --detach --name page --restart unless-stopped --net host "
    "--cap-drop ALL --security-opt no-new-privileges --read-only --tmpfs /tmp --log-opt max-size=50m "
    "--volume /data:/data:ro --env PREDICTION_LOG=/data/predictions --env FEEDBACK_FOLDER=/data/feedback "
    "--env API_URL=http://127.0.0.1:8000 --env STREAMLIT_SERVER_ADDRESS=0.0.0.0 "
    "--env STREAMLIT_SERVER_BASE_URL_PATH=page"
)


def check_tools() -> None:
    """Raise a ClusterError that names a missing program which Ray's launcher calls, before anything costs money."""
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise ClusterError(f"`{tool}` is not on PATH: install {package}; Ray reaches the nodes with it")


def read_template() -> dict[str, Any]:
    """Return ec2.yaml with its placeholders not filled in."""
    return dict(yaml.safe_load(TEMPLATE.read_text()))


def render_config(settings: Settings, outputs: Mapping[str, str], private_key: Path, cluster: str) -> dict[str, Any]:
    """Return the config of `ray up`: ec2.yaml with settings and stack outputs filled in, validated by Ray.

    Raises:
        ClusterError: A placeholder is not a setting or output, or Ray rejects the result.
    """
    values = {**settings.model_dump(), **outputs, "cluster": cluster, "private_key": str(private_key)}
    values |= {"subnets": json.dumps(settings.subnets), "registry": settings.registry}
    try:
        config = yaml.safe_load(string.Template(TEMPLATE.read_text()).substitute(values))
    except KeyError as error:
        raise ClusterError(
            f"{TEMPLATE.name}: {error} is neither a setting nor an output of stack {settings.name}: "
            "correct the placeholder, or update the stack with `python -m cluster up`"
        ) from None
    except ValueError as error:
        raise ClusterError(f"{TEMPLATE.name}: {error}: write $$ for a plain $") from None
    environment = (f"--env={name}={value}" for name, value in node_environment().items())
    config["docker"]["run_options"] += map(shlex.quote, environment)  # Ray joins the options into one shell command
    return validate(config)


def node_environment() -> dict[str, str]:
    """Return the environment of every Ray node: configs/ray.env, with token authentication on."""
    return read_ray_env() | {"RAY_AUTH_MODE": "token"}


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config unchanged if Ray's own validation accepts it; raise a ClusterError if it does not."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(config))
    except Exception as error:
        raise ClusterError(f"{TEMPLATE.name}: Ray rejects it: {str(error).splitlines()[0]}") from None
    return config


def run_ray(command: str, *arguments: str | Path) -> None:
    """Run a command of Ray's cluster launcher; a failure is a ClusterError, output goes to the operator's terminal.

    The arguments of `up`, `down` and `exec` are options, then the config file, then for `exec` the shell command.
    """
    if subprocess.run([*RAY_CLI, command, *map(str, arguments)], env=ray_environment()).returncode:
        raise ClusterError(f"`ray {command}` failed; its output is above")


def ray_environment() -> dict[str, str]:
    """Return this process's environment with Ray's usage statistics off, so that `ray` does not ask about them."""
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}


@contextlib.contextmanager
def tunnel(config: Path, remote_port: int) -> Iterator[str]:
    """Forward a free local port to a port of the head through ssh; yield its URL, within a minute."""
    port = free_port()
    options = ["--no-config-cache", "--port", str(port), "--remote-port", str(remote_port)]
    command = [*RAY_CLI, "dashboard", *options, str(config)]
    process = subprocess.Popen(
        command, env=ray_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + TUNNEL_TIMEOUT_S
        while not accepts_connections(port):
            if process.poll() is not None or time.monotonic() > deadline:
                reason = f"see why with `ray exec {config} true`"
                raise ClusterError(f"no ssh tunnel to port {remote_port} of the head: {reason}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # ends ssh too, which is a child of `ray dashboard`
        process.wait()


def accepts_connections(port: int) -> bool:
    """Return whether a process on this machine listens on a TCP port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def deploy(config: Path, serve_config: Path, ray_token: str, api_key: str | None, *arguments: str) -> None:
    """Deploy a Serve config to the head with `serve-app deploy`, which waits, tests and rolls back.

    Its test requests carry ``api_key``, or without one the operator's ``API_KEY``.
    """
    environment = {**os.environ, "RAY_AUTH_TOKEN": ray_token} | ({"API_KEY": api_key} if api_key else {})
    with tunnel(config, 8265) as dashboard, tunnel(config, 8000) as api:
        command = [sys.executable, "-m", "serve_app", "deploy", str(serve_config), "--address", dashboard, "--api", api]
        if subprocess.run([*command, *arguments], cwd=ROOT, env=environment).returncode:
            raise ClusterError(f"{serve_config} was not deployed; the reason is above")


def start_page(config: Path, settings: Settings, key_parameter: str | None) -> None:
    """Start the page's container on the head's host; one that already runs with the same options keeps serving.

    Args:
        config: Ray's config of the cluster.
        settings: Of the installation; they name the page's image.
        key_parameter: Parameter with the page's API key; the host reads it, so that no command line contains the key.
    """
    key, options = "", ""
    if key_parameter:
        get = f"aws ssm get-parameter --region {settings.region} --name {key_parameter} --with-decryption"
        key, options = f"API_KEY=$({get} --query Parameter.Value --output text) && export API_KEY && ", "--env API_KEY "
    if settings.public_url:
        options += f"--env API_PUBLIC_URL={settings.public_url} "
    run = f"{RUN_PAGE} {options}{settings.page_image}"
    mark = f"command={hashlib.sha256(run.encode()).hexdigest()[:12]}"
    command = (
        f"docker ps --quiet --filter label={mark} | grep -q . || "
        f"{{ docker rm --force page >/dev/null 2>&1; {key}{run.replace('--name', f'--label {mark} --name', 1)}; }}"
    )
    run_ray("exec", "--no-config-cache", "--run-env", "host", config, command)
