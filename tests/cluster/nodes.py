"""Several Ray nodes on one machine, each with its own processes, loopback address and environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil

from serve_app.launcher.environment import free_port, haproxy_files_and_ports, read_ray_env
from serve_app.paths import DATA_VARIABLE
from tests.support.paths import ROOT

START_TIMEOUT_S = 90
OBJECT_STORE_BYTES = 200_000_000
TOKEN = "token-of-these-tests"  # what Ray asks of every caller, as on EC2 and Kubernetes


class Node:
    """A node started with `ray start --block`, the command that a cluster's machines run.

    Attributes:
        host: The node's loopback address. 127.0.0.1 is not used: Ray replaces it by the machine's own address.
    """

    def __init__(
        self,
        number: int,
        folder: Path,
        options: list[str],
        api_port: int,
        cpus: int = 4,
        redis: str | None = None,
        token: str | None = TOKEN,
    ) -> None:
        """Start a node.

        Args:
            number: Last part of its address, and its name in the folder.
            folder: For the files of all nodes.
            options: Further options of `ray start`.
            api_port: Where HAProxy listens on this node.
            cpus: CPUs that it offers.
            redis: Address of the Redis that keeps the state of Ray's control plane.
            token: What it asks of every caller; None lets a test connect whose process imported Ray without one.
        """
        self.host = f"127.0.0.{number}"
        files = folder / f"n{number}"
        files.mkdir(exist_ok=True)
        self.output = files / "output"
        self._command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *("--node-ip-address", self.host, "--num-cpus", str(cpus), "--resources", json.dumps({"model": cpus // 2})),
            *("--object-store-memory", str(OBJECT_STORE_BYTES)),
            *("--dashboard-agent-listen-port", str(free_port()), *options),
        ]
        self._environment = environment(files, api_port, token) | (_survive_head(redis) if redis else {})
        self.start()

    def start(self) -> None:
        """Start the node, also once more after ``kill``, under the same addresses."""
        with self.output.open("a") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kill all processes of the node at once, like a power failure."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            for process in [root, *root.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait(20)


class Head(Node):
    """The node that also runs Ray's control plane.

    Attributes:
        address: Of Ray's control plane; the other nodes join it.
        dashboard: URL of Ray's dashboard; `serve-app deploy` sends configs to it.
    """

    def __init__(
        self, folder: Path, api_port: int, cpus: int = 4, redis: str | None = None, token: str | None = TOKEN
    ) -> None:
        port, dashboard_port = free_port(), free_port()
        options = ["--head", "--port", str(port), "--dashboard-port", str(dashboard_port)]
        options += ["--ray-client-server-port", str(free_port()), "--temp-dir", str(folder / "r")]
        self._last_cluster = folder / "r" / "ray_current_cluster"
        self.address, self.dashboard = f"127.0.0.2:{port}", f"http://127.0.0.1:{dashboard_port}"
        super().__init__(2, folder, options, api_port, cpus, redis, token)

    def start(self) -> None:
        """Start the node and wait for its dashboard."""
        self._last_cluster.unlink(missing_ok=True)  # Ray refuses to start where it finds the address of its cluster
        super().start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(httpx2.HTTPError):
                url, headers = f"{self.dashboard}/api/serve/applications/", {"Authorization": f"Bearer {TOKEN}"}
                if httpx2.get(url, headers=headers, timeout=10).status_code == 200:
                    return
            time.sleep(0.5)
        self.kill()
        raise RuntimeError(f"Ray did not start within {START_TIMEOUT_S} s: {self.output.read_text()}")


def environment(files: Path, api_port: int, token: str | None) -> dict[str, str]:
    """configs/ray.env, and what two nodes on one machine may not share."""
    own = {
        "PYTHONPATH": str(ROOT),
        DATA_VARIABLE: str(files.parent / "data"),  # one for all nodes
        "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(api_port),
        **token_mode(token),
    }  # the head keeps http_options.port
    return {**os.environ, **read_ray_env(), **haproxy_files_and_ports(files), **own}


def token_mode(token: str | None) -> dict[str, str]:
    """Return the variables of nodes, and of programs that call them."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}


def _survive_head(redis: str) -> dict[str, str]:
    """What KubeRay sets with gcsFaultToleranceOptions: Redis, and how long a node waits for another head."""
    return {"RAY_REDIS_ADDRESS": redis, "RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
