"""Replicas killed under load, with two of each stage: no request fails. ``make soak`` is the long trial."""

from __future__ import annotations

import copy
from pathlib import Path

import psutil
import pytest

from serve_app.release.rollout import ServeApi, previous_config
from tests.support.bad_day import BadDay
from tests.support.constant_load import ConstantLoad
from tests.support.photos import make_photo
from tests.support.processes import Tree
from tests.support.running import Running
from tests.support.services import APPLY_TIMEOUT_S

RATE = 15
STAGES = ("Ingress", "Preprocessor", "Classifier")


@pytest.fixture
def bad_day(running: Running, cluster: ServeApi, tmp_path: Path) -> BadDay:
    """Kills parts of the shared service, which has two replicas of each stage for this test."""
    two = copy.deepcopy(previous_config(cluster.state()))
    for deployment in two["applications"][0]["deployments"]:
        deployment["num_replicas"] = 2
        deployment["health_check_period_s"] = 2  # how Serve notices a dead replica; 10 by default
    cluster.apply(two, APPLY_TIMEOUT_S)
    return BadDay(cluster, running.api, Tree(psutil.Process(running.process.pid), running.mark), tmp_path)


def test_a_killed_replica_fails_no_request(running: Running, bad_day: BadDay) -> None:
    """SIGKILL one replica of each stage under load, each time until two run again: every answer is 200 and the same."""
    load = ConstantLoad(f"{running.api}/v1/classify", make_photo(), RATE)
    with load.running():
        for stage in STAGES:
            bad_day.kinds[f"kill {stage}"](0)
    assert load.failed() == []
    assert {outcome.label for outcome in load.outcomes} == {load.outcomes[0].label}
    assert len(load.outcomes) > RATE * 3
