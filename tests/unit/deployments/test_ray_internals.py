"""Where calls go while Serve takes a stage's only replica out of routing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID

from serve_app.deployments import ray_internals as routing
from serve_app.deployments.classifier import Classifier
from serve_app.deployments.ray_internals import StickyReplicaRouter

STAGE = DeploymentID(name="Classifier", app_name="classify")
A_WHILE_S = 0.05


def replica(name: str) -> Any:
    async def get_queue_len(*, deadline_s: float) -> int:
        return 0

    place = {"node_id": "node", "availability_zone": None, "multiplexed_model_ids": ()}
    return SimpleNamespace(replica_id=ReplicaID(name, STAGE), get_queue_len=get_queue_len, **place)


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> StickyReplicaRouter:
    """Knows one replica."""
    monkeypatch.setattr(routing, "UPDATE_S", A_WHILE_S)
    return StickyReplicaRouter(deployment_id=STAGE, handle_source=DeploymentHandleSource.REPLICA)


def names(router: StickyReplicaRouter) -> set[str]:
    return {each.unique_id for each in router.curr_replicas}


async def test_the_only_replica_is_asked_while_it_is_updated(router: StickyReplicaRouter) -> None:
    one = replica("one")
    router.update_replicas([one])
    router.update_replicas([])
    assert names(router) == {"one"}
    router.update_replicas([one])
    await asyncio.sleep(2 * A_WHILE_S)
    assert names(router) == {"one"}


async def test_none_for_long_is_none(router: StickyReplicaRouter) -> None:
    router.update_replicas([replica("one")])
    router.update_replicas([])
    await asyncio.sleep(2 * A_WHILE_S)
    assert names(router) == set()


async def test_a_dead_replica_is_asked_no_more(router: StickyReplicaRouter) -> None:
    one = replica("one")
    router.update_replicas([one])
    router.update_replicas([])
    router.on_replica_actor_died(one.replica_id)
    assert names(router) == set()
    router.update_replicas([replica("two")])
    await asyncio.sleep(2 * A_WHILE_S)
    assert names(router) == {"two"}


async def test_one_of_several_is_left_alone_while_it_is_updated(router: StickyReplicaRouter) -> None:
    one, two = replica("one"), replica("two")
    router.update_replicas([one, two])
    router.update_replicas([two])
    assert names(router) == {"two"}


def test_the_model_is_called_so() -> None:
    stage: Any = Classifier
    assert stage._deployment_config.request_router_config.get_request_router_class() is StickyReplicaRouter
