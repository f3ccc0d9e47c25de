"""Two Ray nodes: the service uses both, survives the loss of one, and uses its replacement."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve_app.launcher.environment import free_port
from serve_app.launcher.spot_notice import METADATA_VARIABLE
from serve_app.release.rollout import RefusedError, ServeApi
from serve_app.release.serve_config import check, read
from tests.cluster.nodes import TOKEN, Head, Node, token_mode
from tests.support.configs import tuned
from tests.support.constant_load import ConstantLoad
from tests.support.instance_metadata import InstanceMetadata, instance_metadata
from tests.support.paths import ROOT
from tests.support.photos import make_photo

pytestmark = pytest.mark.skipif(not os.environ.get("NODES"), reason="takes two minutes: make test-nodes runs it")

RATE = 10
HEADLESS_S = 30
NOTICE_S = 120  # how long before the end EC2 announces that it reclaims a spot instance
RECOVERY_S = 30  # no request may fail later than this after a node is lost


def production(port: int, replicas: int) -> dict[str, Any]:
    """configs/production.yaml with so many replicas per stage, one per node; the resource `model` stands for a GPU."""
    config = read(ROOT / "configs" / "production.yaml")
    config["http_options"]["port"] = port  # of all addresses: HAProxy of one node reaches Serve's proxy on another
    (app,) = config["applications"]
    app["args"] = {"weights": "demo"}
    for deployment in app["deployments"]:
        deployment.pop("autoscaling_config", None)
        deployment |= {"num_replicas": replicas, "max_replicas_per_node": 1}
        deployment["ray_actor_options"] = {"num_cpus": 1}
        if deployment["name"] == "Classifier":
            deployment["ray_actor_options"]["resources"] = {"model": 1}
    check(config)
    return config


@pytest.fixture
def redis(folder: Path) -> Iterator[str]:
    """The address of a Redis server of its own."""
    if (program := shutil.which("redis-server")) is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        yield f"127.0.0.1:{port}"
        process.terminate()


def replicas_by_node(cluster: ServeApi) -> dict[str, Counter[str]]:
    """Return how many replicas of each stage run on each node."""
    deployments = cluster.state()["applications"]["classify"]["deployments"]
    return {
        name: Counter(replica["node_ip"] for replica in deployment["replicas"] if replica["state"] == "RUNNING")
        for name, deployment in deployments.items()
    }


def wait_for(condition: Callable[[], Any], timeout_s: float, description: str) -> float:
    """Poll until the condition holds; return the seconds that took."""
    start = time.monotonic()
    while time.monotonic() < start + timeout_s:
        if condition():
            return time.monotonic() - start
        time.sleep(0.5)
    raise TimeoutError(f"not within {timeout_s:.0f} s: {description}")


def wait_for_answer(url: str) -> None:
    wait_for(lambda: httpx2.post(url, content=make_photo(), timeout=30).is_success, 30, url)


@pytest.mark.timeout(400)
def test_the_service_recovers_from_a_lost_node(folder: Path, nodes: list[Node]) -> None:
    """After a node is killed under load no request fails later than RECOVERY_S, and a new node gets replicas."""
    port, other_port = free_port(), free_port()
    nodes.append(head := Head(folder, port))
    nodes.append(other := Node(3, folder, ["--address", head.address], other_port))
    cluster = ServeApi(head.dashboard, TOKEN)
    cluster.apply(production(port, replicas=2), 200)
    stages = ("Ingress", "Preprocessor", "Classifier", "Teacher")
    both = {stage: Counter({head.host: 1, other.host: 1}) for stage in stages}
    assert replicas_by_node(cluster) == both
    for api_port in (port, other_port):
        url = f"http://127.0.0.1:{api_port}/v1/classify"
        wait_for_answer(url)

    load = ConstantLoad(f"http://127.0.0.1:{port}/v1/classify", make_photo(), RATE)
    with load.running():
        time.sleep(5)
        killed = time.time()
        other.kill()
        time.sleep(RECOVERY_S)
        wait_for(lambda: replicas_by_node(cluster)["Ingress"] == {head.host: 1}, 60, "Serve drops the dead replicas")
        time.sleep(5)
        nodes.append(Node(4, folder, ["--address", head.address], free_port()))
        back_s = wait_for(
            lambda: all(len(counts) == 2 for counts in replicas_by_node(cluster).values()),
            120,
            "each stage runs on two nodes again",
        )
        time.sleep(5)
    failed = load.failed()
    last = max((request.at + request.ms / 1000 - killed for request in failed), default=0)
    slowest_ms = max(request.ms for request in load.outcomes)
    print(f"{len(load.outcomes)} requests, slowest {slowest_ms:.0f} ms; {len(failed)} failed, last after {last:.1f} s")
    outcomes = Counter(request.outcome[:100] for request in failed)
    print(f"two nodes again after {back_s:.0f} s; failures: {outcomes}")
    assert len(load.outcomes) > RATE * 30
    assert min((request.at - killed for request in failed), default=0) > -5
    assert last < RECOVERY_S


@pytest.mark.timeout(600)
def test_the_service_survives_the_loss_of_its_head(folder: Path, nodes: list[Node], redis: str) -> None:
    """With Ray's state in Redis, the other node answers while there is no head, and then takes a new config."""
    port, other_port = free_port(), free_port()
    nodes.append(head := Head(folder, port, cpus=0, redis=redis))
    nodes.append(Node(3, folder, ["--address", head.address], other_port, redis=redis))
    cluster, config = ServeApi(head.dashboard, TOKEN), production(port, replicas=1)
    cluster.apply(config, 200)
    url = f"http://127.0.0.1:{other_port}/v1/classify"
    wait_for_answer(url)
    before = replica_ids(cluster)
    load = ConstantLoad(url, make_photo(), RATE)
    with load.running():
        time.sleep(5)
        head.kill()
        time.sleep(HEADLESS_S)
        head.start()
        wait_for(lambda: replica_ids(cluster) == before, 120, "Serve finds the replicas that ran on")
        time.sleep(5)
        cluster.apply(tuned(config, "Ingress", top_k=3), 200)
        time.sleep(5)
    failed = load.failed()
    outcomes = Counter(request.outcome[:100] for request in failed)
    slowest_ms = max(request.ms for request in load.outcomes)
    print(f"{len(load.outcomes)} requests, slowest {slowest_ms:.0f} ms, {len(failed)} failed: {outcomes}")
    assert failed == []
    assert replica_ids(cluster) == before
    assert len(httpx2.post(url, content=make_photo()).json()["results"][0]["predictions"]) == 3


@pytest.mark.timeout(600)
def test_no_request_fails_when_a_spot_node_goes(folder: Path, nodes: list[Node]) -> None:
    """At EC2's notice all replicas move to the other node, before the node ends. Ray refuses callers without token."""
    port = free_port()
    nodes.append(head := Head(folder, port, cpus=0))
    with pytest.raises(RefusedError, match="rejected Ray's token"):
        ServeApi(head.dashboard).state()
    nodes.append(spot := Node(3, folder, ["--address", head.address], free_port()))
    cluster, config = ServeApi(head.dashboard, TOKEN), production(port, replicas=1)
    cluster.apply(config, 300)
    url = f"http://127.0.0.1:{port}/v1/classify"
    wait_for_answer(url)
    assert {host for counts in replicas_by_node(cluster).values() for host in counts} == {spot.host}
    nodes.append(other := Node(4, folder, ["--address", head.address], free_port()))
    wait_for(lambda: "Ray runtime started" in other.output.read_text(), 90, "the other node joins")
    load = ConstantLoad(url, make_photo(), RATE)
    with instance_metadata(spot.host) as metadata, watching_for_notice(head, metadata) as watcher, load.running():
        time.sleep(10)
        metadata.reclaim(NOTICE_S)
        stages = ("Ingress", "Preprocessor", "Classifier", "Teacher")
        moved = {stage: Counter({other.host: 1}) for stage in stages}
        moved_s = wait_for(lambda: replicas_by_node(cluster) == moved, NOTICE_S, "all replicas run elsewhere")
        spot.kill()
        time.sleep(10)
        assert watcher.poll() is None
    failed = load.failed()
    slowest_ms = max(request.ms for request in load.outcomes)
    print(f"all replicas moved in {moved_s:.0f} s")
    print(f"{len(load.outcomes)} requests, slowest {slowest_ms:.0f} ms, {len(failed)} failed")
    assert failed == []


@contextmanager
def watching_for_notice(head: Head, metadata: InstanceMetadata) -> Iterator[subprocess.Popen[bytes]]:
    """Run what every worker of cluster/ec2.yaml runs beside Ray."""
    own = {METADATA_VARIABLE: metadata.url, **token_mode(TOKEN)}
    command = [sys.executable, "-m", "serve_app.launcher.spot_notice", head.address]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own}) as process:
        try:
            yield process
        finally:
            process.terminate()


def replica_ids(cluster: ServeApi) -> dict[str, set[str]]:
    """Return the running replicas of each stage; empty while Serve does not know its application."""
    try:
        applications = cluster.state()["applications"]
    except RefusedError:
        return {}
    deployments = applications.get("classify", {"deployments": {}})["deployments"]
    return {
        name: {replica["replica_id"] for replica in deployment["replicas"] if replica["state"] == "RUNNING"}
        for name, deployment in deployments.items()
    }
