"""The deployment that fits heads beside the stages, so that teaching takes no time from requests."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ray import serve

from serve_app.deployments.ray_internals import prepare_replica
from serve_app.errors import ServiceError
from serve_app.heads.examples import Example
from serve_app.heads.fit import Fitted, fit
from serve_app.model_card import ModelRef
from serve_app.scheduling import idle_thread, restore_scheduling

MAX_IDLE_FIT_S = 3.0  # a fit takes less on a free core; on a busy node it then competes like a request
log = logging.getLogger("serve_app")


# One fit at a time; further ones wait, and beyond the queue's end the ingress answers 503.
@serve.deployment(max_ongoing_requests=1, max_queued_requests=32)
class Teacher:
    """Fits heads, one at a time, in a thread of idle scheduling.

    scikit-learn takes 100 MB and seconds of CPU to import, so the first fit imports it. ``prepare`` does so while the
    photos of that fit are still being embedded.
    """

    def __init__(self) -> None:
        self._check_ray = prepare_replica()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fit")
        restore_scheduling()

    async def __call__(self, examples: Sequence[Example], backbone: ModelRef) -> Fitted | ServiceError:
        """Fit a head; see heads.fit. Errors are returned: Ray Serve would log a raised one as a crash."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, _fit, examples, backbone)
        except ServiceError as error:
            return error
        except Exception:
            log.exception("a fit of %d examples failed", len(examples))
            return ServiceError("the head could not be fitted; the server's log has the reason")

    async def prepare(self) -> None:
        """Import what a fit needs."""
        await asyncio.get_running_loop().run_in_executor(self._thread, _import_libraries)

    async def check_health(self) -> None:
        """Check that Ray works as this code expects; Ray Serve calls this before the first request and regularly."""
        self._check_ray()


def _import_libraries() -> None:
    for name in ("sklearn.linear_model", "scipy.optimize", "scipy.sparse.csgraph"):
        importlib.import_module(name)


def _fit(examples: Sequence[Example], backbone: ModelRef) -> Fitted:
    with idle_thread(MAX_IDLE_FIT_S):
        return fit(examples, backbone)
