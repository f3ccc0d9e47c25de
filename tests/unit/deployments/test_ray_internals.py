"""What the deployments need of Ray's insides takes effect with the installed Ray, and fails the start where not.

Each test names the line of Ray to look at when it fails after an upgrade.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from ray import serve
from ray.serve._private import replica as serve_replica
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve._private.default_impl import get_request_metadata
from ray.serve._private.logging_utils import ServeContextFilter
from ray.serve.request_router import RequestRouter

from serve_app.deployments import ray_internals
from serve_app.deployments.classifier import Classifier
from serve_app.deployments.ray_internals import (
    BIND,
    SERVE_LOG,
    StickyReplicaRouter,
    bind_to_loopback,
    check_request_id,
    log_with_serve,
    set_request_id,
    sticky_routing,
)

STAGE = DeploymentID(name="Classifier", app_name="classify")
EVERYWHERE = "[::]:0"  # the address that Serve gives


def replica(name: str) -> Any:
    async def get_queue_len(*, deadline_s: float) -> int:
        return 0

    place = {"node_id": "node", "availability_zone": None, "multiplexed_model_ids": ()}
    return SimpleNamespace(replica_id=ReplicaID(name, STAGE), get_queue_len=get_queue_len, **place)


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> StickyReplicaRouter:
    """Believes in an empty list of replicas in the loop's next turn."""
    monkeypatch.setattr(ray_internals, "EMPTY_AFTER_S", 0)
    return StickyReplicaRouter(deployment_id=STAGE, handle_source=DeploymentHandleSource.REPLICA)


def names(router: StickyReplicaRouter) -> set[str]:
    return {replica_id.unique_id for replica_id in router.curr_replicas}


async def turn_loop() -> None:
    """Let everything run that is due now."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_the_last_replica_gets_calls_while_it_updates(router: StickyReplicaRouter) -> None:
    """RequestRouter.update_replicas in ray/serve/_private/request_router/request_router.py."""
    one = replica("one")
    router.update_replicas([one])
    router.update_replicas([])
    assert names(router) == {"one"}
    router.update_replicas([one])
    await turn_loop()
    assert names(router) == {"one"}


async def test_no_replica_for_long_is_no_replica(router: StickyReplicaRouter) -> None:
    router.update_replicas([replica("one")])
    router.update_replicas([])
    await turn_loop()
    assert names(router) == set()


async def test_a_dead_replica_gets_no_calls(router: StickyReplicaRouter) -> None:
    one = replica("one")
    router.update_replicas([one])
    router.update_replicas([])
    router.on_replica_actor_died(one.replica_id)
    assert names(router) == set()
    router.update_replicas([replica("two")])
    await turn_loop()
    assert names(router) == {"two"}


async def test_one_of_several_gets_no_calls_while_it_updates(router: StickyReplicaRouter) -> None:
    one, two = replica("one"), replica("two")
    router.update_replicas([one, two])
    router.update_replicas([two])
    assert names(router) == {"two"}


@pytest.mark.parametrize(("count", "chosen"), [(0, 0), (1, 1), (2, 2), (5, 2)])
async def test_two_replicas_compete_for_a_call(router: StickyReplicaRouter, count: int, chosen: int) -> None:
    """PowerOfTwoChoicesRequestRouter.choose_replicas in ray/serve/_private/request_router/pow_2_router.py."""
    replicas = [replica(str(number)) for number in range(count)]
    router.update_replicas(replicas)
    ranked = await router.choose_replicas(replicas)
    assert [len(candidates) for candidates in ranked] == ([chosen] if chosen else [])
    assert len({one.replica_id for candidates in ranked for one in candidates}) == chosen


def test_calls_to_the_model_are_routed_so() -> None:
    stage: Any = Classifier
    assert stage._deployment_config.request_router_config.get_request_router_class() is StickyReplicaRouter


def test_a_router_without_the_method_fails_the_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RequestRouter, "update_replicas")
    with pytest.raises(RuntimeError, match=r"request_router\.RequestRouter has no update_replicas"):
        sticky_routing()


@pytest.fixture
def server() -> Iterator[grpc.Server]:
    """A gRPC server as a replica has one."""
    server = grpc.server(ThreadPoolExecutor(1))
    yield server
    server.stop(None)


Check = Callable[[], None]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Check:
    """The check that a replica on a loopback node gets."""
    monkeypatch.setattr(serve_replica, BIND, getattr(serve_replica, BIND))  # afterwards it is Ray's again
    return bind_to_loopback("127.0.0.1")


def open_port(server: grpc.Server) -> None:
    """As ``Replica._on_initialized`` does."""
    getattr(serve_replica, BIND)(server, EVERYWHERE)
    server.start()


def test_a_replica_opens_its_port_on_loopback(server: grpc.Server, check: Check) -> None:
    """``Replica._on_initialized`` in ray/serve/_private/replica.py calls add_port_to_grpc_server, for every address."""
    assert BIND in serve_replica.Replica._on_initialized.__code__.co_names
    assert EVERYWHERE in serve_replica.Replica._on_initialized.__code__.co_consts
    open_port(server)
    check()


def test_a_replica_that_opened_no_port_through_the_patch_is_not_healthy(check: Check) -> None:
    """Ray opened its port in another way, perhaps on every address."""
    with pytest.raises(RuntimeError, match=r"listens on an unknown address, not on 127\.0\.0\.1, see Replica\._"):
        check()


def test_a_replica_that_listens_everywhere_is_not_healthy(server: grpc.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's function no longer takes the address that it gets."""
    monkeypatch.setattr(serve_replica, BIND, lambda server, _address: server.add_insecure_port("0.0.0.0:0"))
    check = bind_to_loopback("127.0.0.1")
    open_port(server)
    with pytest.raises(RuntimeError, match=r"listens on ::, not on 127\.0\.0\.1"):
        check()


def test_a_ray_without_the_function_fails_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(serve_replica, BIND)
    with pytest.raises(RuntimeError, match=rf"replica\.py has no {BIND}"):
        bind_to_loopback("127.0.0.1")


def test_log_lines_and_calls_show_the_request_id() -> None:
    """ServeContextFilter in logging_utils.py, get_request_metadata in default_impl.py, both in ray/serve/_private."""
    init, call = (
        SimpleNamespace(_source=None, _run_router_in_separate_loop=False),
        SimpleNamespace(
            **dict.fromkeys(("method_name", "multiplexed_model_id", "session_id", "stream", "_by_reference")),
            **dict.fromkeys(("request_serialization", "response_serialization")),
        ),
    )

    def shown() -> tuple[str, str]:
        set_request_id("mine-1")
        record = logging.makeLogRecord({})
        ServeContextFilter().filter(record)
        return record.__dict__["request_id"], get_request_metadata(init, call).request_id

    assert contextvars.Context().run(shown) == ("mine-1", "mine-1")
    check_request_id()


@pytest.mark.parametrize("other", [None, lambda: None, lambda **_values: None], ids=("gone", "renamed", "no effect"))
def test_a_request_id_without_effect_fails_the_replica(monkeypatch: pytest.MonkeyPatch, other: object) -> None:
    """_set_request_context in ray/serve/context.py."""
    monkeypatch.setattr(serve.context, "_set_request_context", other)
    with pytest.raises(RuntimeError, match=r"set_request_id does not change the request id, see ray/serve/context\.py"):
        check_request_id()


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def own_log(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """Our logger, afterwards below the same parent as before."""
    log = logging.getLogger("serve_app")
    monkeypatch.setattr(log, "parent", log.parent)
    return log


def test_our_lines_go_where_serves_lines_go(own_log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """SERVE_LOGGER_NAME in ray/serve/_private/constants.py; handlers that Serve adds later get them too."""
    lines = Lines()
    log_with_serve()
    monkeypatch.setattr(logging.getLogger(SERVE_LOG), "handlers", [lines])
    own_log.error("a line")
    assert lines.messages == ["a line"]


def test_a_serve_that_logs_elsewhere_fails_the_replica(
    own_log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(SERVE_LOG), "handlers", [])
    with pytest.raises(RuntimeError, match=r"its logger is not 'ray\.serve' any more"):
        log_with_serve()
