"""What the stages share: calls to the next one, and the cores that a replica has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import ray
from ray import serve
from ray._common import tls_utils
from ray.exceptions import RayActorError
from ray.serve._private import replica
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.deadline import Origin
from serve_app.errors import NotReadyError, OverloadedError
from serve_app.messages import ModelState

log = logging.getLogger("serve_app")
Value = TypeVar("Value")
Handle = DeploymentHandle[Any]
PING_TIMEOUT_S = 2.0
MILLISECONDS = [1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


async def ping(handle: Handle, stage: str) -> ModelState:
    """Ask another stage what is served behind it.

    Raises:
        NotReadyError: It does not, or not in time.
    """
    try:
        async with asyncio.timeout(PING_TIMEOUT_S):
            send: Callable[[], Awaitable[ModelState]] = handle.ping.remote
            return await call(send, stage)
    except TimeoutError:
        raise NotReadyError(f"the {stage} stage does not answer yet") from None


async def call(send: Callable[[], Awaitable[Value]], stage: str) -> Value:
    """Ask another stage; once more if its replica dies meanwhile, as classifying twice gives the same answer.

    Serve's own errors become ours, before Serve answers them as text. Only a lost replica is
    worth a second try: one that refuses would have more work by it.

    Raises:
        OverloadedError: Its queues are full.
        NotReadyError: It has no replica, or lost two of them over this call.
    """
    try:
        try:
            return await send()
        except RayActorError:
            log.warning("a replica of the %s stage was lost; another one is asked", stage)
            return await send()
    except BackPressureError as error:
        raise OverloadedError(f"too many images wait for the {stage} stage; try again") from error
    except (DeploymentUnavailableError, RayActorError) as error:
        raise NotReadyError(f"the {stage} stage is not available; try again") from error


def stay_on_loopback() -> None:
    """On a node that has only a loopback address, open this replica's port for calls there and not everywhere.

    Ray binds everything else to the node's address, but this one to all of the machine's; whoever
    reaches it can run code.
    """
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call] # Ray leaves it so
    if address.startswith("127."):
        bind: Callable[..., int] = tls_utils.add_port_to_grpc_server
        vars(replica)["add_port_to_grpc_server"] = lambda server, _everywhere: bind(server, f"{address}:0")


def log_with_serve() -> None:
    """Have our lines written as Serve writes its own: where, from which level and as what logging_config says."""
    log.parent = logging.getLogger(SERVE_LOGGER_NAME)


def name_request(origin: Origin | None) -> None:
    """Let what this task logs, and the calls that it makes, name the request of one image.

    A call between stages may carry images of several requests. Serve would name the first that the replica ever had.
    """
    if origin:
        serve.context._set_request_context(request_id=origin[0])


def cores() -> int:
    """CPU cores for this replica: those that Ray reserved for it, or all of its node if it reserved none."""
    context = ray.get_runtime_context()
    reserved: dict[str, float] = context.get_assigned_resources()  # type: ignore[no-untyped-call] # Ray leaves it so
    if cores := int(reserved.get("CPU", 0)):
        return cores
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call] # Ray leaves it so
    here = next(node for node in nodes if node["NodeID"] == context.get_node_id())
    return max(1, int(here["Resources"].get("CPU", 1)))
