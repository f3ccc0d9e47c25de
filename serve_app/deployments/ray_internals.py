"""What the deployments need of Ray beyond its documented API, each in one place, written against Ray 2.60.0.

`prepare_replica` is the first call in each deployment's ``__init__``. The check that it returns belongs into the
deployment's ``check_health``: Serve sends a replica no request before that has succeeded once. If another version of
Ray leaves one of these without effect, the replica does not start, and the error says what to look at.

Ray's HAProxy configuration is edited in launcher/haproxy_edits.py.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import random
from collections.abc import Callable
from functools import cache

import psutil
import ray
from ray import serve
from ray.serve._private import replica
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import (
    FIFOMixin,
    LocalityMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from serve_app.exposure import API_HOST, is_loopback, reachable_host

SERVE_LOG = "ray.serve"
EMPTY_AFTER_S = 5.0  # Serve's control loop sees the end of an update after half a second
BIND = "add_port_to_grpc_server"


@cache
def prepare_replica() -> Callable[[], None]:
    """Set up logging, request ids and the port of this replica, once, also where it has several stages.

    Returns:
        A check for ``check_health``. It raises RuntimeError unless this replica's port for calls between stages
        listens where it should; after a first success it costs nothing.

    Raises:
        RuntimeError: This Ray differs from the one that this code was written against.
    """
    log_with_serve()
    check_request_id()
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call] # Ray leaves it so
    return bind_to_loopback(address) if is_loopback(address) else lambda: None


def api_host() -> str:
    """Return the address by which clients reach the API of this node.

    `serve-app run` names it in the environment; with HAProxy, Serve's own setting is then 127.0.0.1.

    Raises:
        RuntimeError: Serve's client no longer has its HTTP settings.
    """
    if host := os.environ.get(API_HOST):
        return reachable_host(host)
    options = getattr(serve.context._get_global_client(), "http_config", None)
    if options is None:
        raise _unknown_ray("Serve's client has no http_config, see ray/serve/_private/client.py")
    return reachable_host(str(options.host))


def log_with_serve() -> None:
    """Write our log lines as Serve writes its own: to which file, from which level and in which format.

    Serve documents the name of its logger. Its handlers may be replaced at any time (``logging_config``), so our
    logger becomes a child of Serve's instead of copying them.

    Raises:
        RuntimeError: Serve logs under another name, and our lines would be lost.
    """
    serve_log = logging.getLogger(SERVE_LOG)
    if not serve_log.handlers:
        raise _unknown_ray(f"its logger is not {SERVE_LOG!r} any more, see ray/serve/_private/constants.py")
    logging.getLogger("serve_app").parent = serve_log


def set_request_id(request_id: str) -> None:
    """Put a request id on the log lines and on the calls to other stages that the current task makes from here on.

    A task that serves several requests, such as the one that sends groups of images, inherits the id of the request
    that started it. Serve has no public way to change that. A context variable of our own does not do: Serve's
    filter overwrites the id of each line with Serve's, and the access lines of the next stage show the id that came
    with the call. Running the task in the request's own context (``create_task(context=…)``) does not do either:
    Serve would then cancel the whole group with its first request.

    Args:
        request_id: The client's X-Request-ID, or ours.
    """
    serve.context._set_request_context(request_id=request_id)


def check_request_id() -> None:
    """Check that `set_request_id` changes the id that Serve's log lines and calls show.

    Raises:
        RuntimeError: Serve keeps the id elsewhere.
    """

    def read_back() -> str:
        set_request_id("self-check")
        shown: str = serve.context._get_serve_request_context().request_id
        return shown

    try:
        works = contextvars.Context().run(read_back) == "self-check"
    except (AttributeError, TypeError):
        works = False
    if not works:
        raise _unknown_ray("set_request_id does not change the request id, see ray/serve/context.py")


def bind_to_loopback(address: str) -> Callable[[], None]:
    """Have Serve open this replica's port for calls between stages on loopback instead of on every address.

    Serve opens the port (gRPC) after the deployment's ``__init__`` and before its first ``check_health``, in
    ``Replica._on_initialized`` of ray/serve/_private/replica.py. Whoever reaches that port can run code. Ray binds
    all its other ports to the node's address. A setting for the address would replace this patch.

    Args:
        address: The node's loopback address.

    Returns:
        A check that raises RuntimeError unless the port was opened, and on loopback only.

    Raises:
        RuntimeError: Serve opens the port in another way.
    """
    bind: Callable[..., int] | None = getattr(replica, BIND, None)
    if bind is None:
        raise _unknown_ray(f"ray/serve/_private/replica.py has no {BIND}, which opens a replica's port")
    opened: list[int] = []
    checked: list[bool] = []

    def bind_here(server: object, _everywhere: str) -> int:
        opened.append(bind(server, f"{address}:0"))
        return opened[-1]

    setattr(replica, BIND, bind_here)

    def check() -> None:
        if checked:
            return
        addresses = {
            connection.laddr.ip
            for connection in psutil.Process().net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port in opened
        }
        if not addresses or not all(map(is_loopback, addresses)):
            raise _unknown_ray(
                f"the port for calls between stages listens on {', '.join(addresses) or 'an unknown address'}, not on "
                f"{address}, see Replica._on_initialized in ray/serve/_private/replica.py"
            )
        checked.append(True)

    return check


def sticky_routing() -> RequestRouterConfig:
    """Return the routing of calls to a stage that answers while its ``user_config`` changes.

    Raises:
        RuntimeError: Serve's public base class for routers no longer has the method that we override.
    """
    if missing := [name for name in ("update_replicas", "curr_replicas") if not hasattr(RequestRouter, name)]:
        raise _unknown_ray(f"ray.serve.request_router.RequestRouter has no {' and no '.join(missing)}")
    return RequestRouterConfig(request_router_class=StickyReplicaRouter)  # type: ignore[arg-type] # it takes a class


class StickyReplicaRouter(FIFOMixin, LocalityMixin, RequestRouter):
    """Chooses between two random replicas as Serve's default router does, and keeps the last replica while it updates.

    Serve takes a replica out of routing until its control loop has seen that ``reconfigure`` returned. If it is the
    only replica, all requests would wait for that, longer than a full queue takes. A replica that is really gone
    fails the calls that reach it, and Serve then forgets the replica.
    """

    _pending_empty: asyncio.TimerHandle | None = None

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return two random replicas, those on this node first; Serve takes the one with the shorter queue."""
        ids: list[ReplicaID] = list(self.apply_locality_routing(pending_request=pending_request))
        return [[self.curr_replicas[id] for id in random.sample(ids, min(2, len(ids)))]] if ids else []

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the replicas that Serve routes to; believe in an empty list only after `EMPTY_AFTER_S`."""
        if self._pending_empty:
            self._pending_empty.cancel()
            self._pending_empty = None
        if replicas or not self.curr_replicas:
            super().update_replicas(replicas)
        else:
            loop = asyncio.get_running_loop()
            self._pending_empty = loop.call_later(EMPTY_AFTER_S, super().update_replicas, [])


def _unknown_ray(difference: str) -> RuntimeError:
    return RuntimeError(
        f"serve_app/deployments/ray_internals.py does not fit Ray {ray.__version__}: {difference}. Adapt that file, or "
        "install the version of Ray that constraints.txt names"
    )
