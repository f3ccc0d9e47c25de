"""Calls from one stage to the next through Ray Serve's handles, and what a replica knows of its node."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.ray_internals import set_request_id
from serve_app.errors import NotReadyError, OverloadedError, ServiceError
from serve_app.messages import ClassifyRequest, ModelState, Outcome, RemoteImage

log = logging.getLogger("serve_app")
Value = TypeVar("Value")
Handle = DeploymentHandle[Any]
PING_TIMEOUT_S = 2.0


async def call(send: Callable[[], Awaitable[Value]], stage: str) -> Value:
    """Call another stage, and once more if its replica dies; classifying twice gives the same result.

    Ray Serve would answer its own errors as plain text, so they become ours here. A replica that refuses is not
    called again: that would add to its load.

    Raises:
        OverloadedError: The queues of the stage are full (503).
        NotReadyError: The stage has no replica, or lost two replicas during this call (503).
    """
    try:
        try:
            return await send()
        except RayActorError:
            log.warning("a replica of the %s stage died during a call; the call is repeated on another one", stage)
            return await send()
    except BackPressureError as error:
        raise OverloadedError(f"the queue of the {stage} stage is full; retry later") from error
    except (DeploymentUnavailableError, RayActorError) as error:
        raise NotReadyError(f"the {stage} stage is not available; retry later") from error


async def ping(handle: Handle | LocalHandle, stage: str) -> ModelState:
    """Ask another stage which model it serves; NotReadyError (503) if it does not answer within ``PING_TIMEOUT_S``."""
    try:
        async with asyncio.timeout(PING_TIMEOUT_S):
            send: Callable[[], Awaitable[ModelState]] = handle.ping.remote
            return await call(send, stage)
    except TimeoutError:
        raise NotReadyError(f"the {stage} stage does not answer yet") from None


class HandleClient:
    """The connection to a variant; see VariantClient.

    Args:
        application: The variant's Ray Serve application, which may start later, stop and come back.
        preprocessor: The variant's first stage, if it is in this application.
    """

    def __init__(self, application: str, preprocessor: Handle | LocalHandle | None = None) -> None:
        self._application, self._own = application, preprocessor
        self._other: Handle | None = None  # looked up on first use

    async def send(self, requests: list[ClassifyRequest[bytes]], in_flight_hint: int) -> list[Outcome]:
        """Classify a group of images."""
        handle = await self._handle()
        if context := requests[0].context:
            set_request_id(context.request_id)
        return await call(lambda: handle.remote(requests, in_flight_hint), "preprocess")

    async def fetch(self, image: RemoteImage) -> bytes | ServiceError:
        """Fetch an image by its URL."""
        handle = await self._handle()
        set_request_id(image.context.request_id)
        encoded: bytes | ServiceError = await call(lambda: handle.fetch.remote(image), "preprocess")
        return encoded

    async def fetch_state(self) -> ModelState:
        """Ask the variant which model it serves."""
        try:
            return await ping(await self._handle(), "preprocess")
        except NotReadyError:
            self._other = None
            raise

    async def _handle(self) -> Handle | LocalHandle:
        if self._own is not None:
            return self._own
        if self._other is None:
            try:
                self._other = await asyncio.to_thread(serve.get_app_handle, self._application)
            except RayServeException:
                raise NotReadyError(f"there is no application {self._application!r}") from None
        return self._other


class LocalHandle:
    """A stage of the same process with the interface of a handle: arguments and results are passed, not copied."""

    def __init__(self, stage: Any) -> None:
        self.remote: Callable[..., Awaitable[Any]] = stage.__call__
        self._stage = stage

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self._stage, method))


def cores() -> int:
    """Return the CPU cores of this replica: those that Ray reserved for it, else all cores of its node."""
    context = ray.get_runtime_context()
    reserved: dict[str, float] = context.get_assigned_resources()  # type: ignore[no-untyped-call] # Ray leaves it so
    if cores := int(reserved.get("CPU", 0)):
        return cores
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call] # Ray leaves it so
    node = next(node for node in nodes if node["NodeID"] == context.get_node_id())
    return max(1, int(node["Resources"].get("CPU", 1)))
