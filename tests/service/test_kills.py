"""Replicas that are killed under load, with two of each: no request fails. ``make soak`` is the long trial."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from serve_app.release.rollout import ServeApi, previous_config
from tests.conftest import make_photo
from tests.support.bad_day import BadDay
from tests.support.constant_load import ConstantLoad
from tests.support.processes import Tree
from tests.support.running import Running

RATE = 15
STAGES = ("Ingress", "Preprocessor", "Classifier")


@pytest.fixture
def bad_day(running: Running, tmp_path: Path) -> Iterator[BadDay]:
    """For a service with two replicas of each stage; afterwards it is as it was."""
    cluster = ServeApi(running.dashboard)
    before = previous_config(cluster.state())
    two = copy.deepcopy(before)
    for one in two["applications"][0]["deployments"]:
        one["num_replicas"] = 2
    try:
        cluster.apply(two, 200)
        yield BadDay(cluster, running.api, Tree(psutil.Process(running.process.pid), running.mark), tmp_path)
    finally:
        cluster.apply(before, 200)


def test_a_killed_replica_costs_nobody_an_answer(running: Running, bad_day: BadDay) -> None:
    """SIGKILL to one replica of each stage, each time until there are two again."""
    load = ConstantLoad(f"{running.api}/v1/classify", make_photo(), RATE)
    with load.running():
        for stage in STAGES:
            bad_day.kinds[f"kill {stage}"](0)
    assert load.failed() == []
    assert {one.said for one in load.seen} == {load.seen[0].said}
    assert len(load.seen) > RATE * 10
