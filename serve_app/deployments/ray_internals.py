"""Every use of a private Ray API, one function or class each. Written against Ray 2.60.0."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import ray
from ray import serve
from ray._common import tls_utils
from ray.serve._private import replica
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RunningReplica

from serve_app.messages import RequestContext

UPDATE_S = 5.0  # Serve's control loop sees the end of an update after half a second
log = logging.getLogger("serve_app")


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


def set_request_id(context: RequestContext | None) -> None:
    """Let what this task logs, and the calls that it makes, name the request of one image.

    A call between stages may carry images of several requests. Serve would name the first that the replica ever had.
    """
    if context:
        serve.context._set_request_context(request_id=context.request_id)


class StickyReplicaRouter(PowerOfTwoChoicesRequestRouter):
    """Serve's own router, for a stage that answers while its ``user_config`` changes.

    Serve takes a replica out of routing until its control loop has seen that ``reconfigure`` returned. If it is the
    only one, all requests wait for that: longer than a full queue would take. One that is gone instead says so to
    whoever calls it, and is asked no more.
    """

    _empty: asyncio.TimerHandle | None = None

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """See RequestRouter; that there is none is believed after a while."""
        if self._empty:
            self._empty.cancel()
            self._empty = None
        if replicas or not self.curr_replicas:
            super().update_replicas(replicas)
        else:
            self._empty = self._event_loop.call_later(UPDATE_S, super().update_replicas, [])


STEADY = RequestRouterConfig(request_router_class=StickyReplicaRouter)  # type: ignore[arg-type] # it takes a class
