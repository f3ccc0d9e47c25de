"""A router over fake variants, whose state and results a test sets."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from serve_app.config import IngressConfig
from serve_app.errors import NotReadyError, ServiceError
from serve_app.messages import ClassifyRequest, ClassifyResult, ModelState, Outcome, RemoteImage
from serve_app.model_card import ImageTransform, ModelCard
from serve_app.routing.router import VariantRouter
from serve_app.routing.shadow import Comparison
from serve_app.routing.traffic_split import VariantChoice
from serve_app.validation import parse

REQUEST = ClassifyRequest(b"photo", 2)


def card(version: str) -> ModelCard:
    transform = ImageTransform(resize_px=96, crop_px=96, mean=(0, 0, 0), std=(1, 1, 1))
    labels = (f"cat of {version}", f"dog of {version}")
    return ModelCard(name="resnet18", version=version, labels=labels, transform=transform, sha256="0" * 64)


def result(
    version: str, labels: tuple[str, ...] = ("cat", "dog"), scores: tuple[float, ...] = (0.9, 0.1)
) -> ClassifyResult:
    ids = tuple(range(len(labels)))
    return ClassifyResult(ids, labels, scores, 0.8, 0.3, card(version).ref, timings_ms={"queue": 0.0})


class FakeClient:
    """A variant whose results name its version.

    Attributes:
        version: Of its weights.
        available: Whether a replica answers.
        ping_error: Raised by a ping before anything else.
        images: Images that it has classified.
        pings: Calls of fetch_state.
        error: Returned instead of results.
        open: Calls wait until it is set.
    """

    def __init__(self, version: str, available: bool = True) -> None:
        self.version, self.available, self.images = version, available, 0
        self.error: ServiceError | None = None
        self.ping_error: Exception | None = None
        self.pings = 0
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, requests: list[ClassifyRequest[bytes]], in_flight_hint: int) -> list[Outcome]:
        await self.open.wait()
        if not self.available:
            raise NotReadyError(f"{self.version} is gone")
        self.images += len(requests)
        return [self.error or result(self.version) for _ in requests]

    async def fetch(self, image: RemoteImage) -> bytes | ServiceError:
        if not self.available:
            raise NotReadyError(f"{self.version} is gone")
        return self.error or self.version.encode()

    async def fetch_state(self) -> ModelState:
        self.pings += 1
        if self.ping_error:
            raise self.ping_error
        if not self.available:
            raise NotReadyError(f"{self.version} is gone")
        return ModelState(card=card(self.version))


class CountingMetrics:
    """Remembers every call."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, ...]] = Counter()

    def add_result(self, variant: str, result: ClassifyResult, seconds: float) -> None:
        self.calls["result", variant, result.model.version] += 1

    def add_error(self, variant: str, code: str) -> None:
        self.calls["error", variant, code] += 1

    def add_comparison(self, variant: str, version: str, comparison: Comparison) -> None:
        self.calls["comparison", variant, str(comparison.agree)] += 1


class World:
    """A router over the variants main, blue and green."""

    def __init__(self) -> None:
        self.clients = {name: FakeClient(name) for name in ("main", "blue", "green")}
        self.metrics = CountingMetrics()
        self.router = VariantRouter(
            lambda name: self.clients.get(name) or FakeClient(name, available=False), self.metrics
        )

    async def configure(self, **user_config: object) -> None:
        self.router.reconfigure(parse(IngressConfig, user_config))
        await self.router.check_ready()

    async def classify(self, name: str | None = None) -> str:
        return (await self.router.classify(REQUEST, self.router.choose(name))).model.version

    async def versions(self, count: int = 50) -> Counter[str]:
        return Counter([await self.classify() for _ in range(count)])

    async def status(self) -> dict[str, Any]:
        return await self.router.describe()

    def serves_only(self, name: str) -> Callable[[], bool]:
        return lambda: self.router.choose() == VariantChoice(name)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition for up to 60 s of virtual time."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)
