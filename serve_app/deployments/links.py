"""Stage 1/3 · variants of the model as Serve applications, and Prometheus's view of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.metrics import Counter, Gauge, Histogram

from serve_app.deployments.handles import MILLISECONDS, Handle, call, name_request, ping
from serve_app.errors import NotReadyError, ServiceError
from serve_app.http.service import Answer, Wanted
from serve_app.messages import ModelState
from serve_app.observability.feedback_store import Vote
from serve_app.routing.shadow import Comparison

TENTHS = [n / 10 for n in range(1, 11)]


class HandleClient:
    """A way to a variant whose first stage is known."""

    def __init__(self, preprocessor: Handle) -> None:
        """Send nothing yet."""
        self._preprocessor = preprocessor

    async def send(self, wanted: list[Wanted], company: int) -> list[Answer | ServiceError]:
        """See VariantClient."""
        name_request(wanted[0].deadline.origin)
        return await call(lambda: self._preprocessor.remote(wanted, company), "preprocess")

    async def ask(self) -> ModelState:
        """See VariantClient."""
        return await ping(self._preprocessor, "preprocess")


class ApplicationClient:
    """A way to another application, which may come later than we do, go and come back."""

    def __init__(self, name: str) -> None:
        """Look for it when it is first asked."""
        self._name = name
        self._found: HandleClient | None = None

    async def send(self, wanted: list[Wanted], company: int) -> list[Answer | ServiceError]:
        """See VariantClient."""
        return await (await self._find()).send(wanted, company)

    async def ask(self) -> ModelState:
        """See VariantClient."""
        try:
            return await (await self._find()).ask()
        except NotReadyError:
            self._found = None
            raise

    async def _find(self) -> HandleClient:
        if self._found is None:
            try:
                self._found = HandleClient(await asyncio.to_thread(serve.get_app_handle, self._name))
            except RayServeException:
                raise NotReadyError(f"no application {self._name!r} runs here") from None
        return self._found


class ServeMetrics:
    """See Metrics."""

    def __init__(self) -> None:
        """Register them."""
        tags: Any = ("variant", "version")  # Ray's annotation allows one name only
        codes: Any = ("variant", "code")
        self._ms = Histogram("image_ms", "Time of an answered image.", MILLISECONDS, (*tags, "phase"))
        self._failed = Counter("variant_failed_images", "Images that got an error.", codes)
        self._compared = Counter("shadow_compared", "Copies of images whose answers were compared.", (*tags, "agree"))
        self._difference = Histogram("shadow_difference", "Between the scores of the label given.", TENTHS, tags)
        self._rows = Gauge("prediction_log_rows", "Since this log was opened, or now.", ("state",))
        self._votes = Counter("feedback_votes", "Votes on answers, by what was said.", ("correct",))

    def answered(self, variant: str, answer: Answer, seconds: float) -> None:
        """See Metrics."""
        tags = {"variant": variant, "version": answer.model.version}
        for phase, ms in {**answer.timings_ms, "total": seconds * 1000}.items():
            self._ms.observe(ms, {**tags, "phase": phase})

    def failed(self, variant: str, code: str) -> None:
        """See Metrics."""
        self._failed.inc(tags={"variant": variant, "code": code})

    def compared(self, variant: str, version: str, found: Comparison) -> None:
        """See Metrics."""
        tags = {"variant": variant, "version": version}
        self._compared.inc(tags={**tags, "agree": str(found.agree).lower()})
        self._difference.observe(found.difference, tags)

    def logged(self, rows: Mapping[str, int]) -> None:
        """How many rows of the prediction log are written, wait or were dropped."""
        for state, count in rows.items():
            self._rows.set(count, {"state": state})

    def voted(self, vote: Vote) -> None:
        """Somebody said whether an answer was right."""
        self._votes.inc(tags={"correct": "unsaid" if vote.correct is None else str(vote.correct).lower()})
