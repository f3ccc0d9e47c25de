"""What the stages share: calls to the next one, and the cores that a replica has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import ray
from ray._common import tls_utils
from ray.exceptions import RayActorError
from ray.serve._private import replica
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.errors import NotReadyError, OverloadedError

Value = TypeVar("Value")
Handle = DeploymentHandle[Any]
PING_TIMEOUT_S = 2.0


async def ping(handle: Handle, stage: str) -> None:
    """Ask another stage whether it answers.

    Raises:
        NotReadyError: It does not, or not in time.
    """
    try:
        async with asyncio.timeout(PING_TIMEOUT_S):
            await call(handle.ping.remote(), stage)
    except TimeoutError:
        raise NotReadyError(f"the {stage} stage does not answer yet") from None


async def call(response: Awaitable[Value], stage: str) -> Value:
    """Await another stage; Serve's own errors become ours, before Serve answers them as text."""
    try:
        return await response
    except BackPressureError as error:
        raise OverloadedError(f"too many images wait for the {stage} stage; try again") from error
    except (DeploymentUnavailableError, RayActorError) as error:
        raise NotReadyError(f"the {stage} stage is not available; try again") from error


def stay_on_loopback() -> None:
    """On a node that has only a loopback address, open this replica's port for calls there and not everywhere.

    Ray binds everything else to the node's address, but this one to all of the machine's; whoever
    reaches it can run code.
    """
    address = ray.util.get_node_ip_address()
    if address.startswith("127."):
        bind = tls_utils.add_port_to_grpc_server
        replica.add_port_to_grpc_server = lambda server, _everywhere: bind(server, f"{address}:0")


def cores() -> int:
    """CPU cores for this replica: those that Ray reserved for it, or all of its node if it reserved none."""
    context = ray.get_runtime_context()
    reserved: dict[str, float] = context.get_assigned_resources()  # type: ignore[no-untyped-call] # Ray leaves it so
    if cores := int(reserved.get("CPU", 0)):
        return cores
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call] # Ray leaves it so
    here = next(node for node in nodes if node["NodeID"] == context.get_node_id())
    return max(1, int(here["Resources"].get("CPU", 1)))
