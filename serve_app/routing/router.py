"""Stage 1/3 · the variants of the model: shares, switching, failing over, shadow. Knows no Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from serve_app.config import IngressConfig
from serve_app.errors import NotReadyError, ServiceError, UnknownModelError
from serve_app.http.service import Answer, Choice, Wanted
from serve_app.messages import ModelState
from serve_app.model_card import ModelCard
from serve_app.routing.shadow import Comparison, compare
from serve_app.routing.traffic_split import Traffic, pick
from serve_app.routing.variant import ASK_AGAIN_S, Variant, VariantClient, grouping

SHADOWS_AT_ONCE = 8  # copies that come while so many are under way are dropped
log = logging.getLogger("serve_app")


class Metrics(Protocol):
    """Where it is counted."""

    def answered(self, variant: str, answer: Answer, seconds: float) -> None:
        """An image was classified."""

    def failed(self, variant: str, code: str) -> None:
        """An image got an error."""

    def compared(self, variant: str, version: str, found: Comparison) -> None:
        """A shadow's answer was compared."""


class VariantRouter:
    """All variants, and which of them answers.

    Other shares hold once every variant that is to get requests has answered, so that a misspelled
    name or a model that does not start costs no request. A variant that stops answering gets none
    until it answers again, and the others share what is its.
    """

    def __init__(self, connect: Callable[[str], VariantClient], metrics: Metrics) -> None:
        """Connect to nobody yet.

        Args:
            connect: Makes the way to a variant of that name.
            metrics: Where it is counted.
        """
        self._connect, self._metrics = connect, metrics
        self._grouping = grouping(IngressConfig())
        self._traffic = Traffic()
        self._started = False
        self._variants: dict[str, Variant] = {}
        self._waiting_for: str | None = None
        self._switching: asyncio.Task[None] | None = None
        self._shadows: Counter[str] = Counter()
        self._recovering: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def reconfigure(self, tuning: IngressConfig) -> None:
        """Take other shares, at once the first time."""
        self._grouping = grouping(tuning)
        for variant in self._variants.values():
            variant.reconfigure(*self._grouping)
        if self._switching:
            self._switching.cancel()
        self._waiting_for = None
        wanted = Traffic.of(tuning)
        if not self._started:
            self._traffic, self._started = wanted, True
        elif wanted != self._traffic:
            self._switching = asyncio.create_task(self._switch(wanted))

    async def check_ready(self) -> None:
        """See Service.check_ready."""
        serving = [self._variant(name) for name in self._traffic.serving]
        answers = await asyncio.gather(*(each.prove() for each in serving), return_exceptions=True)
        for variant in serving:
            if variant.trouble:
                self._start(self._recover(variant))
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(errors) == len(serving):
            raise errors[0]

    def choose(self, asked: str | None, client: str | None) -> Choice:
        """See Service.choose."""
        if asked is not None:
            if asked not in self._traffic.names:
                known = ", ".join(map(repr, self._traffic.names))
                raise UnknownModelError(f"X-Model: no variant {asked!r} here; there is {known}")
            return Choice(asked, asked=True)
        serving = self._traffic.serving
        able = {name: share for name, share in serving.items() if self._variant(name).trouble is None}
        return Choice(pick(able or serving, client))

    def cards(self) -> dict[str, ModelCard]:
        """See Service.cards."""
        known = ((name, self._variant(name).state) for name in self._traffic.names)
        return {name: state.card for name, state in known if state}

    async def ask(self, name: str) -> ModelState:
        """Ask a variant what it serves.

        Raises:
            NotReadyError: It does not answer.
        """
        return await self._variant(name).ask()

    async def classify(self, choice: Choice, wanted: Wanted) -> Answer:
        """Classify one image; another variant takes over from one that nobody answers for."""
        try:
            answer = await self._counted(choice.variant, wanted)
        except NotReadyError:
            self._start(self._recover(self._variant(choice.variant)))
            others = {n: s for n, s in self._traffic.serving.items() if n != choice.variant}
            able = {name: share for name, share in others.items() if self._variant(name).trouble is None}
            if choice.asked or not able:
                raise
            answer = await self._counted(pick(able), wanted)
        shadow = self._traffic.shadow
        if shadow not in (None, choice.variant) and random.random() < self._traffic.shadow_fraction:
            if self._shadows["under_way"] < SHADOWS_AT_ONCE:
                self._start(self._shadow(self._variant(shadow), wanted, answer))
            else:
                self._shadows["dropped"] += 1
        return answer

    async def describe(self) -> dict[str, Any]:
        """``traffic`` and ``variants`` for /v1/status."""
        variants = [self._variant(name) for name in self._traffic.names]
        await asyncio.gather(*(each.ask() for each in variants), return_exceptions=True)
        total = sum(self._traffic.shares.values())
        return {
            "traffic": {"waiting_for": self._waiting_for, "shadow": self._shadow_status()},
            "variants": {
                each.name: {
                    "share": round(self._traffic.shares.get(each.name, 0.0) / total, 4),
                    "model": each.state and each.state.card.ref.model_dump(),
                    "loading": each.state and each.state.loading,
                    "refused": each.state and each.state.refused,
                    "trouble": each.trouble,
                    "images": dict(each.counts),
                }
                for each in variants
            },
        }

    def _variant(self, name: str) -> Variant:
        if name not in self._variants:
            self._variants[name] = Variant(name, self._connect(name), self._grouping)
        return self._variants[name]

    async def _switch(self, wanted: Traffic) -> None:
        while True:
            serving = [self._variant(name) for name in wanted.serving]
            answers = await asyncio.gather(*(each.ask() for each in serving), return_exceptions=True)
            missing = [
                f"{each.name}: {answer}"
                for each, answer in zip(serving, answers, strict=True)
                if isinstance(answer, BaseException)
            ]
            if not missing:
                break
            if self._waiting_for is None:
                log.warning("traffic stays as it is until all variants answer; %s", "; ".join(missing))
            self._waiting_for = "; ".join(missing)
            await asyncio.sleep(ASK_AGAIN_S)
        log.info("traffic: %s", wanted)
        self._traffic, self._waiting_for = wanted, None
        for name in self._variants.keys() - set(wanted.names):
            self._start(self._variants.pop(name).close())

    async def _counted(self, name: str, wanted: Wanted) -> Answer:
        variant, start = self._variant(name), time.perf_counter()
        try:
            answer = await variant.classify(wanted)
        except ServiceError as error:
            variant.counts[error.code] += 1
            self._metrics.failed(name, error.code)
            raise
        variant.counts["ok"] += 1
        self._metrics.answered(name, answer, time.perf_counter() - start)
        return answer

    async def _recover(self, variant: Variant) -> None:
        """Ask one that nobody answers for until somebody does; it gets requests again then."""
        if variant.name in self._recovering:
            return
        self._recovering.add(variant.name)
        while variant.trouble and self._variants.get(variant.name) is variant:
            with contextlib.suppress(NotReadyError):
                await variant.ask()
            await asyncio.sleep(ASK_AGAIN_S)
        self._recovering.discard(variant.name)

    async def _shadow(self, variant: Variant, wanted: Wanted, given: Answer) -> None:
        self._shadows["under_way"] += 1
        try:
            answer = await self._counted(variant.name, wanted)
        except ServiceError:
            self._shadows["failed"] += 1
            return
        finally:
            self._shadows["under_way"] -= 1
        found = compare(given, answer)
        self._shadows["compared"] += 1
        self._shadows["agreed"] += found.agree
        self._metrics.compared(variant.name, answer.model.version, found)
        if not found.agree:
            log.info("shadow %s disagrees with %s: %s", answer.model.version, given.model.version, found)

    def _shadow_status(self) -> dict[str, Any] | None:
        if self._traffic.shadow is None:
            return None
        counts = {name: self._shadows[name] for name in ("compared", "agreed", "failed", "dropped", "under_way")}
        return {"variant": self._traffic.shadow, "share": self._traffic.shadow_fraction, **counts}

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
