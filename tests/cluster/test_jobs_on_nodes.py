"""A batch job on a cluster as configs/production.yaml has it: a head without CPUs, and a worker."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
import ray
from ray.util.state import list_actors

from serve_app.batch.job_records import OPEN
from serve_app.batch.job_store import JobStore
from serve_app.config import JobsConfig
from serve_app.deployments.job_actor import JobActor, start_jobs
from serve_app.launcher.environment import free_port
from tests.cluster.nodes import START_TIMEOUT_S, Head, Node
from tests.support.jobs import submit_job
from tests.support.photos import make_photo

pytestmark = pytest.mark.skipif(not os.environ.get("NODES"), reason="takes a minute: make test-nodes runs it")

IMAGES = 300
TIMEOUT_S = 600  # on a busy machine, where the job only gets idle time


def actors(head: Head, class_name: str) -> set[tuple[str, str]]:
    """Return state and node of the actors of a class, those that have ended included."""
    hosts = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    found = list_actors(address=head.dashboard, detail=True, filters=[("class_name", "=", class_name)])
    return {(actor.state, hosts.get(actor.node_id, "")) for actor in found}


def test_a_job_is_run_from_the_head_and_computed_on_workers(folder: Path, nodes: list[Node]) -> None:
    """The head offers no CPU; nothing ends the actor there, as Ray would end it with an idle worker."""
    (folder / "photos").mkdir()
    for number in range(IMAGES):
        (folder / "photos" / f"{number}.jpg").write_bytes(make_photo(number))
    store = JobStore(folder / "jobs")
    job = submit_job(store, str(folder / "photos"))
    nodes.append(head := Head(folder, free_port(), cpus=0, token=None))
    nodes.append(worker := Node(3, folder, ["--address", head.address], free_port(), token=None))
    with ray.init(head.address, log_to_driver=False):
        last_s = time.monotonic() + START_TIMEOUT_S
        while len(ray.nodes()) < len(nodes):
            assert time.monotonic() < last_s, worker.output.read_text()
            time.sleep(0.5)
        asyncio.run(start_jobs(JobsConfig(folder=str(store.folder), workers=2)))
        last_s = time.monotonic() + TIMEOUT_S
        while store.state(job).status in OPEN and time.monotonic() < last_s:
            time.sleep(1)
        state = store.state(job)
        assert (state.status, state.progress.done, state.progress.failed) == ("succeeded", IMAGES, 0)
        assert actors(head, JobActor.__name__) == {("ALIVE", head.host)}
        workers = actors(head, "MapWorker(Map(DecodeAndPredict))")
        assert {host for _, host in workers} == {worker.host}
