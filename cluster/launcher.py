"""Ray's cluster launcher: its config file made from ec2.yaml, its commands, and tunnels to the head."""

from __future__ import annotations

import contextlib
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
from serve_app.launcher.environment import read_ray_env

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "cluster" / "ec2.yaml"
RAY = (sys.executable, "-m", "ray.scripts.scripts")
TUNNEL_TIMEOUT_S = 60
PAGE = (
    "docker rm --force page >/dev/null 2>&1; docker run --detach --name page --restart unless-stopped --net host "
    "--cap-drop ALL --security-opt no-new-privileges --read-only --tmpfs /tmp --log-opt max-size=50m "
    "--env API_URL=http://127.0.0.1:8000 --env STREAMLIT_SERVER_ADDRESS=0.0.0.0 "
    "--env STREAMLIT_SERVER_BASE_URL_PATH=page {image}"
)


def check_tools() -> None:
    """Find out that the launcher's programs are here before anything costs money.

    Raises:
        ClusterError: Names the one that is missing.
    """
    for tool, what in (("aws", "the AWS command line, version 2"), ("ssh", "OpenSSH"), ("rsync", "rsync")):
        if shutil.which(tool) is None:
            raise ClusterError(f"`{tool}` is not on PATH: install {what}, the nodes are reached with it")


def template() -> dict[str, Any]:
    """ec2.yaml with its placeholders."""
    return dict(yaml.safe_load(TEMPLATE.read_text()))


def render(settings: Settings, outputs: Mapping[str, str], private_key: Path, cluster: str) -> dict[str, Any]:
    """Fill in ec2.yaml and let Ray check it.

    Args:
        settings: Of this installation.
        outputs: Of the stack.
        private_key: What opens the nodes.
        cluster: Name of the Ray cluster.

    Raises:
        ClusterError: The stack lacks an output, or Ray refuses the result.
    """
    values = {
        "cluster": cluster,
        "private_key": str(private_key),
        "subnets": json.dumps(settings.subnets),
        **{name: getattr(settings, name) for name in ("name", "region", "image", "ami")},
    }
    try:
        values |= {
            "endpoint": outputs["Endpoint"],
            "security_group": outputs["SecurityGroup"],
            "head_profile": outputs["HeadProfile"],
            "worker_profile": outputs["WorkerProfile"],
        }
    except KeyError as error:
        raise ClusterError(f"stack {settings.name} has no output {error}: run `python -m cluster up`") from None
    try:
        config = yaml.safe_load(string.Template(TEMPLATE.read_text()).substitute(values))
    except (KeyError, ValueError) as error:
        raise ClusterError(f"{TEMPLATE.name}: no value for a placeholder ({error}); write $$ for a plain $") from None
    environment = (f"--env={name}={value}" for name, value in read_ray_env().items())
    config["docker"]["run_options"] += map(shlex.quote, environment)  # Ray makes one line of them for a shell
    return check(config)


def check(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config if Ray's own validation accepts it.

    Raises:
        ClusterError: It does not.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(config))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ClusterError(f"{TEMPLATE.name}: Ray refuses it: {reason}") from None
    return config


def ray(command: str, config: Path, *arguments: str) -> None:
    """Run one of Ray's cluster commands; its output is the operator's.

    Raises:
        ClusterError: It failed.
    """
    if subprocess.run([*RAY, command, *arguments, str(config)], env=environment()).returncode:
        raise ClusterError(f"`ray {command} {config}` failed; its output is above")


def execute(config: Path, shell: str, on_host: bool = False) -> None:
    """Run a shell command on the head, in its container unless told otherwise.

    Raises:
        ClusterError: It failed.
    """
    where = "host" if on_host else "docker"
    command = [*RAY, "exec", "--no-config-cache", "--run-env", where, str(config), shell]
    if subprocess.run(command, env=environment()).returncode:
        raise ClusterError(f"a command failed on the head ({shell.split(';')[-1].strip()[:60]} …); its output is above")


def environment() -> dict[str, str]:
    """Of Ray's commands here: no usage statistics, and no question about them."""
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}


@contextlib.contextmanager
def tunnel(config: Path, remote_port: int) -> Iterator[str]:
    """Reach a port of the head through ssh; gives its address here.

    Raises:
        ClusterError: The tunnel does not open.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*RAY, "dashboard", "--no-config-cache", "--port", str(port), "--remote-port", str(remote_port)]
    process = subprocess.Popen(
        [*command, str(config)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + TUNNEL_TIMEOUT_S
        while not listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"no tunnel to port {remote_port} of the head: try `ray exec {config} true`")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # ssh is Ray's child
        process.wait()


def listens(port: int) -> bool:
    """Whether something takes connections on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def deploy(config: Path, serve_config: Path, *arguments: str) -> None:
    """Hand a Serve config to the head with the project's deploy command, which waits, tries and rolls back.

    Raises:
        ClusterError: The command failed; it has said why.
    """
    with tunnel(config, 8265) as dashboard, tunnel(config, 8000) as api:
        command = [
            sys.executable,
            "-m",
            "serve_app.release.deploy",
            str(serve_config),
            "--address",
            dashboard,
            "--api",
            api,
        ]
        if subprocess.run([*command, *arguments], cwd=ROOT).returncode:
            raise ClusterError(f"{serve_config} was not deployed; the reason is above")


def start_page(config: Path, image: str) -> None:
    """Run the page beside Ray on the head."""
    execute(config, PAGE.format(image=image), on_host=True)
