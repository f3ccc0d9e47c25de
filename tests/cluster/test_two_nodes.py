"""Several nodes: the service spreads over them, outlives one, and takes it back."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest

from serve_app.launcher.environment import free_port
from serve_app.release.rollout import ServeApi
from serve_app.release.serve_config import check, read
from tests.cluster.nodes import Head, Node
from tests.conftest import make_photo
from tests.support.constant_load import ConstantLoad
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(not os.environ.get("NODES"), reason="takes two minutes: make test-nodes runs it")

RATE = 10
# A request that fails later than this after a node is lost is a bug.
WINDOW_S = 30


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Ray keeps sockets under it."""
    with TemporaryDirectory(prefix="n", ignore_cleanup_errors=True) as path:
        yield Path(path)


def config(port: int) -> dict[str, Any]:
    """configs/production.yaml with two replicas of each stage, one to a node; `model` stands for a GPU."""
    found = read(ROOT / "configs" / "production.yaml")
    found["http_options"] |= {"host": "127.0.0.1", "port": port}
    (app,) = found["applications"]
    app["args"] = {"weights": "demo"}
    for one in app["deployments"]:
        del one["autoscaling_config"]
        one |= {"num_replicas": 2, "max_replicas_per_node": 1}
        one["ray_actor_options"] = {"num_cpus": 1}
        if one["name"] == "Classifier":
            one["ray_actor_options"]["resources"] = {"model": 1}
    check(found)
    return found


def where(cluster: ServeApi) -> dict[str, Counter[str]]:
    """How many replicas of each stage run on which node."""
    deployments = cluster.state()["applications"]["classify"]["deployments"]
    return {
        name: Counter(each["node_ip"] for each in one["replicas"] if each["state"] == "RUNNING")
        for name, one in deployments.items()
    }


def wait_for(done: Callable[[], Any], timeout_s: float, what: str) -> float:
    """Seconds until it is so."""
    start = time.monotonic()
    while time.monotonic() < start + timeout_s:
        if done():
            return time.monotonic() - start
        time.sleep(0.5)
    raise TimeoutError(what)


@pytest.mark.timeout(400)
def test_a_lost_node_costs_a_moment_and_comes_back(folder: Path) -> None:
    """Spread over two nodes; one is killed under load: no failure after the window; a new node gets its share."""
    port, other_port = free_port(), free_port()
    nodes: list[Node] = [head := Head(folder, port)]
    try:
        nodes.append(other := Node(3, folder, ["--address", head.address], other_port))
        cluster = ServeApi(head.dashboard)
        cluster.apply(config(port), 200)
        both = {stage: Counter({head.host: 1, other.host: 1}) for stage in ("Ingress", "Preprocessor", "Classifier")}
        assert where(cluster) == both
        for each in (port, other_port):
            url = f"http://127.0.0.1:{each}/v1/classify"
            wait_for(lambda url=url: httpx2.post(url, content=make_photo(), timeout=30).is_success, 30, url)

        load = ConstantLoad(f"http://127.0.0.1:{port}/v1/classify", make_photo(), RATE)
        with load.running():
            time.sleep(5)
            killed = time.time()
            other.kill()
            time.sleep(WINDOW_S)
            wait_for(lambda: where(cluster)["Ingress"] == {head.host: 1}, 60, "the dead replicas are forgotten")
            time.sleep(5)
            nodes.append(Node(4, folder, ["--address", head.address], free_port()))
            back = wait_for(lambda: all(len(each) == 2 for each in where(cluster).values()), 120, "replicas come back")
            time.sleep(5)
        failed = load.failed()
        last = max((one.at + one.ms / 1000 - killed for one in failed), default=0)
        slow = max(one.ms for one in load.seen)
        print(f"{len(load.seen)} requests, slowest {slow:.0f} ms; {len(failed)} failed, the last after {last:.1f} s")
        print(f"new node's replicas after {back:.0f} s; failures: {Counter(one.outcome[:100] for one in failed)}")
        assert len(load.seen) > RATE * 30
        assert min((one.at - killed for one in failed), default=0) > -5
        assert last < WINDOW_S
    finally:
        for node in nodes:
            node.kill()
