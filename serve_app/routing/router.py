"""Routes images to model variants: traffic shares, failover, shadow copies, live changes."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from serve_app.config import IngressConfig
from serve_app.errors import ModelFailedError, NotReadyError, OverloadedError, ServiceError, UnknownModelError
from serve_app.messages import ClassifyRequest, ClassifyResult, ModelState, RemoteImage
from serve_app.model_card import ModelCard
from serve_app.routing.shadow import Comparison, ShadowStats
from serve_app.routing.traffic_split import TrafficSplit, VariantChoice, pick_variant
from serve_app.routing.variant import MAX_RETRY_S, RETRY_S, Variant, VariantClient

log = logging.getLogger("serve_app")


class RoutingMetrics(Protocol):
    """Where the router counts."""

    def add_result(self, variant: str, result: ClassifyResult, seconds: float) -> None:
        """Count a classified image."""

    def add_error(self, variant: str, code: str) -> None:
        """Count an error."""

    def add_comparison(self, variant: str, version: str, comparison: Comparison) -> None:
        """Count a comparison with the shadow."""


class VariantRouter:
    """All variants, and which of them gets which image.

    New shares take effect once every variant with a share has reported its state, so a misspelled name or a model
    that does not start costs no request. A variant that stops answering gets no requests until it answers again; the
    others take over its share. ``connect`` makes the connection to the variant of that name.
    """

    def __init__(self, connect: Callable[[str], VariantClient], metrics: RoutingMetrics) -> None:
        self._connect, self._metrics = connect, metrics
        self._config = IngressConfig()
        self._split = TrafficSplit()
        self._started = False
        self._variants: dict[str, Variant] = {}
        self._waiting_for: str | None = None
        self._switching: asyncio.Task[None] | None = None
        self._shadow_stats = ShadowStats()
        self._recovering: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def reconfigure(self, config: IngressConfig) -> None:
        """Take other settings; the first call takes effect at once."""
        self._config = config
        for variant in self._variants.values():
            variant.reconfigure(config)
        if self._switching:
            self._switching.cancel()
        self._waiting_for = None
        split = TrafficSplit.from_config(config)
        if not self._started:
            self._split, self._started = split, True
        elif split != self._split:
            self._switching = asyncio.create_task(self._switch(split))

    async def check_ready(self) -> None:
        """Return when a variant with a share answers; raise NotReadyError (503) if none does."""
        serving = [self._variant(name) for name in self._split.serving]
        outcomes = await asyncio.gather(*(each.ensure_alive() for each in serving), return_exceptions=True)
        self._recover_unavailable(serving)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if len(errors) == len(serving):
            raise errors[0]

    def choose(self, name: str | None = None, client: str | None = None) -> VariantChoice:
        """Choose the variant for a request.

        Args:
            name: The variant that the client names (``X-Model``).
            client: Key of a client that wants the same variant each time (``X-Sticky``).

        Raises:
            UnknownModelError: There is no variant of that name (404).
        """
        if name is not None:
            if name not in self._split.names:
                known = ", ".join(map(repr, self._split.names))
                raise UnknownModelError(f"X-Model: there is no variant {name!r}; known variants: {known}")
            return VariantChoice(name, named_by_client=True)
        return VariantChoice(pick_variant(self._available() or self._split.serving, client))

    def cards(self) -> dict[str, ModelCard]:
        """Return the card of each variant that has reported its state, largest share first."""
        known = ((name, self._variant(name).state) for name in self._split.names)
        return {name: state.card for name, state in known if state}

    def first_card(self) -> ModelCard:
        """Return the card of the variant with the largest share; NotReadyError (503) before one has reported."""
        for card in self.cards().values():
            return card
        raise NotReadyError("no model is ready yet; retry")

    async def fetch_state(self, name: str) -> ModelState:
        """Return what a variant serves now, or raise NotReadyError (503) if it does not answer."""
        return await self._variant(name).fetch_state()

    async def classify(self, request: ClassifyRequest[bytes], choice: VariantChoice) -> ClassifyResult:
        """Classify one image, or raise ServiceError.

        Another variant takes over if the chosen one is unavailable, or if its model failed on this image. In the second
        case the chosen variant keeps its share: its other replicas may be sound, and Ray Serve replaces the broken one.
        """
        try:
            result = await self._classify(choice.variant, request)
        except (NotReadyError, ModelFailedError):
            others = {name: share for name, share in self._available().items() if name != choice.variant}
            if choice.named_by_client or not others:
                raise
            result = await self._classify(pick_variant(others), request)
        shadow = self._split.shadow
        copied = shadow not in (None, choice.variant) and random.random() < self._split.shadow_fraction
        if copied and self._shadow_stats.reserve():
            self._start(self._shadow(str(shadow), request, result))
        return result

    async def fetch(self, image: RemoteImage, choice: VariantChoice) -> bytes:
        """Let a variant fetch an image by its URL, another one if it is unavailable, or raise ServiceError."""
        try:
            return await self._variant(choice.variant).fetch(image)
        except NotReadyError:
            others = {name: share for name, share in self._available().items() if name != choice.variant}
            if choice.named_by_client or not others:
                raise
            return await self._variant(pick_variant(others)).fetch(image)

    async def describe(self) -> dict[str, Any]:
        """Return ``traffic`` and ``variants`` for GET /v1/status."""
        variants = [self._variant(name) for name in self._split.names]
        await asyncio.gather(*(each.fetch_state() for each in variants), return_exceptions=True)
        self._recover_unavailable(variants)
        total = sum(self._split.shares.values())
        shadow = self._split.shadow and {
            "variant": self._split.shadow,
            "fraction": self._split.shadow_fraction,
            **self._shadow_stats.snapshot(),
        }
        return {
            "traffic": {"waiting_for": self._waiting_for, "shadow": shadow},
            "variants": {
                each.name: {
                    "share": round(self._split.shares.get(each.name, 0.0) / total, 4),
                    "model": each.state and each.state.card.ref.model_dump(),
                    "runtime": each.state and each.state.engine.runtime,
                    "loading": each.state and each.state.loading,
                    "refused": each.state and each.state.refused,
                    "unavailable_reason": each.unavailable_reason,
                    "images": dict(each.counts),
                }
                for each in variants
            },
        }

    def _variant(self, name: str) -> Variant:
        if name not in self._variants:
            self._variants[name] = Variant(name, self._connect(name), self._config)
        return self._variants[name]

    def _available(self) -> dict[str, float]:
        serving = self._split.serving
        return {name: share for name, share in serving.items() if self._variant(name).unavailable_reason is None}

    async def _switch(self, split: TrafficSplit) -> None:
        while True:
            serving = [self._variant(name) for name in split.serving]
            outcomes = await asyncio.gather(*(each.fetch_state() for each in serving), return_exceptions=True)
            missing = [
                f"{each.name}: {outcome}"
                for each, outcome in zip(serving, outcomes, strict=True)
                if isinstance(outcome, BaseException)
            ]
            if not missing:
                break
            if self._waiting_for is None:
                log.warning("traffic shares stay unchanged until all variants are ready; %s", "; ".join(missing))
            self._waiting_for = "; ".join(missing)
            await asyncio.sleep(RETRY_S)
        log.info("traffic: %s", split)
        self._split, self._waiting_for = split, None
        for name in self._variants.keys() - set(split.names):
            self._start(self._variants.pop(name).close())

    async def _classify(self, name: str, request: ClassifyRequest[bytes]) -> ClassifyResult:
        """Classify with one variant and count the outcome."""
        variant, start = self._variant(name), time.perf_counter()
        try:
            result = await variant.classify(request)
        except ServiceError as error:
            variant.counts[error.code] += 1
            self._metrics.add_error(name, error.code)
            self._recover_unavailable((variant,))
            raise
        variant.counts["ok"] += 1
        self._metrics.add_result(name, result, time.perf_counter() - start)
        return result

    def _recover_unavailable(self, variants: Iterable[Variant]) -> None:
        for variant in variants:
            if variant.unavailable_reason and variant.name not in self._recovering:
                self._start(self._recover(variant))

    async def _recover(self, variant: Variant) -> None:
        """Ask an unavailable variant for its state until it answers; then it gets requests again."""
        if variant.name in self._recovering:
            return
        self._recovering.add(variant.name)
        retry_s = RETRY_S
        try:
            while variant.unavailable_reason and self._variants.get(variant.name) is variant:
                try:
                    await variant.fetch_state()
                except NotReadyError:
                    retry_s = RETRY_S
                except OverloadedError:
                    retry_s = min(2 * retry_s, MAX_RETRY_S)
                except Exception:  # it must be tried again whatever happens, or it never gets requests again
                    log.exception("variant %s: its state cannot be fetched", variant.name)
                    retry_s = MAX_RETRY_S
                await asyncio.sleep(retry_s)
        finally:
            self._recovering.discard(variant.name)

    async def _shadow(self, name: str, request: ClassifyRequest[bytes], returned: ClassifyResult) -> None:
        try:
            shadowed = await self._classify(name, request)
        except Exception as error:
            if not isinstance(error, ServiceError):
                log.exception("shadow %s: a copy failed", name)
            self._shadow_stats.add_error()
            return
        comparison = self._shadow_stats.add_result(returned, shadowed)
        self._metrics.add_comparison(name, shadowed.model.version, comparison)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
