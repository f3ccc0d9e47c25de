"""Stage 2/3 · where a call to the model goes: as Serve decides, and on while all of its replicas are updated."""

from __future__ import annotations

import asyncio

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RunningReplica

UPDATE_S = 5.0  # Serve's control loop sees the end of an update after half a second


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
