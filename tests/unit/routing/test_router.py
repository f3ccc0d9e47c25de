"""The router: live changes of the shares, failover, shadow copies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from serve_app.config import IngressConfig, parse
from serve_app.errors import ModelFailedError, NotReadyError, OverloadedError, ServiceError, UnknownModelError
from serve_app.messages import ClassifyRequest, ClassifyResult, ModelState, Outcome
from serve_app.model_card import ImageTransform, ModelCard
from serve_app.routing.router import VariantRouter
from serve_app.routing.shadow import MAX_IN_FLIGHT, Comparison, compare
from serve_app.routing.traffic_split import VariantChoice
from tests.support.clock import in_virtual_time

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


def test_results_are_compared_by_label() -> None:
    """Class ids belong to their own weights; a label that the shadow does not return counts as 0."""
    returned = result("a")
    assert compare(returned, result("b", ("cat", "dog"), (0.7, 0.3))) == Comparison(True, pytest.approx(0.2))
    assert compare(returned, result("b", ("dog", "cat"), (0.6, 0.4))) == Comparison(False, pytest.approx(0.5))
    assert compare(returned, result("b", ("fox",), (1.0,))) == Comparison(False, pytest.approx(0.9))


@in_virtual_time
async def test_switching_variants_fails_no_request() -> None:
    """Blue, green, blue, green, blue under load: every request gets a result from one of the two."""
    world = World()
    await world.configure(traffic={"blue": 1})
    stop, versions = asyncio.Event(), Counter[str]()

    async def client() -> None:
        while not stop.is_set():
            versions[await world.classify()] += 1
            await asyncio.sleep(0.001)

    clients = [asyncio.create_task(client()) for _ in range(5)]
    for name in ("green", "blue", "green", "blue"):
        await world.configure(traffic={name: 1})
        await until(world.serves_only(name))
        await asyncio.sleep(0.02)
    stop.set()
    await asyncio.gather(*clients)
    assert set(versions) == {"blue", "green"}


@in_virtual_time
async def test_an_unknown_variant_changes_nothing() -> None:
    """With a misspelled name the shares stay as they are, and the status names the variant that is missing."""
    world = World()
    await world.configure(traffic={"blue": 1})
    await world.configure(traffic={"gren": 1})
    await asyncio.sleep(1)
    assert await world.versions(5) == {"blue": 5}
    assert (await world.status())["traffic"]["waiting_for"] == "gren: gren is gone"
    await world.configure(traffic={"green": 1})
    await until(world.serves_only("green"))
    assert (await world.status())["traffic"]["waiting_for"] is None


@in_virtual_time
async def test_new_shares_wait_for_a_late_variant() -> None:
    """Requests stay with the old variant until the new one answers."""
    world = World()
    world.clients["green"].available = False
    await world.configure(traffic={"blue": 1})
    await world.configure(traffic={"green": 1})
    await asyncio.sleep(1)
    assert await world.versions(5) == {"blue": 5}
    world.clients["green"].available = True
    await until(world.serves_only("green"))
    assert await world.versions(5) == {"green": 5}


@in_virtual_time
async def test_ready_means_that_a_variant_answers() -> None:
    """check_ready fails until a variant with a share answers."""
    world = World()
    world.clients["blue"].available = False
    with pytest.raises(NotReadyError):
        await world.configure(traffic={"blue": 1})
    world.clients["blue"].available = True
    await world.router.check_ready()
    assert await world.classify() == "blue"


@in_virtual_time
async def test_another_variant_takes_over_from_a_lost_one() -> None:
    """No request fails, and the lost variant gets its share again when it is back."""
    world = World()
    await world.configure(traffic={"blue": 1, "green": 1})
    world.clients["green"].available = False
    assert await world.versions() == {"blue": 50}
    assert (await world.status())["variants"]["green"]["unavailable_reason"] == "green is gone"
    world.clients["green"].available = True
    await asyncio.sleep(2)
    assert set(await world.versions()) == {"blue", "green"}


@pytest.mark.parametrize(
    "refusal", [OverloadedError("the queue of the preprocess stage is full"), RuntimeError("Ray is gone")], ids=repr
)
@in_virtual_time
async def test_a_lost_variant_is_tried_again_after_any_answer_to_a_ping(refusal: Exception) -> None:
    """A full queue or an unknown error answers the pings for a minute; afterwards the variant has its share again."""
    world = World()
    await world.configure(traffic={"blue": 1, "green": 1})
    green = world.clients["green"]
    green.available, green.ping_error = False, refusal
    assert await world.versions() == {"blue": 50}
    before = green.pings
    await asyncio.sleep(60)
    assert 10 <= green.pings - before <= 20  # with growing pauses: every ping takes a place in the queue
    green.available, green.ping_error = True, None
    await asyncio.sleep(5)
    assert set(await world.versions()) == {"blue", "green"}


@in_virtual_time
async def test_a_variant_that_is_lost_while_it_takes_over_is_tried_again() -> None:
    """Both variants are lost, one of them during a failover; both come back without a call of check_ready."""
    world = World()
    await world.configure(traffic={"blue": 1, "green": 1})
    for name in ("blue", "green"):
        world.clients[name].available = False
    for _ in range(10):
        with pytest.raises(NotReadyError):
            await world.classify()
    for name in ("blue", "green"):
        world.clients[name].available = True
    await asyncio.sleep(2)
    assert set(await world.versions()) == {"blue", "green"}


@in_virtual_time
async def test_another_variant_takes_an_image_on_which_the_model_failed() -> None:
    """The variant keeps its share, because its other replicas may be sound; a named variant is not replaced."""
    world = World()
    await world.configure(traffic={"blue": 1, "green": 1})
    world.clients["green"].error = ModelFailedError("scores are not finite numbers")
    assert await world.versions() == {"blue": 50}
    assert (await world.status())["variants"]["green"]["unavailable_reason"] is None
    with pytest.raises(ModelFailedError):
        await world.classify("green")
    world.clients["green"].error = None
    assert set(await world.versions()) == {"blue", "green"}


@in_virtual_time
async def test_overload_stays_with_its_variant() -> None:
    """Only unavailability moves images to another variant; overload does not."""
    world = World()
    await world.configure(traffic={"blue": 1, "green": 0})
    world.clients["blue"].error = OverloadedError("too much")
    with pytest.raises(OverloadedError):
        await world.classify()
    assert world.clients["green"].images == 0


@in_virtual_time
async def test_a_client_can_name_the_variant() -> None:
    """A named variant needs no share, no other variant takes over, and an unknown name is a 404."""
    world = World()
    await world.configure(traffic={"blue": 1, "green": 0})
    assert await world.classify("green") == "green"
    assert "green" not in await world.versions()
    with pytest.raises(UnknownModelError, match=r"there is no variant 'gren'; known variants: 'blue', 'green'"):
        world.router.choose("gren")
    world.clients["green"].available = False
    with pytest.raises(NotReadyError):
        await world.classify("green")


@in_virtual_time
async def test_new_weights_are_noticed_by_their_results() -> None:
    """A result names its weights; the variant's card follows."""
    world = World()
    await world.configure(traffic={"blue": 1})
    world.clients["blue"].version = "blue 2"
    assert await world.classify() == "blue 2"
    await until(lambda: world.router.cards()["blue"].version == "blue 2")


@in_virtual_time
async def test_shadow_results_are_compared_and_never_returned() -> None:
    """With a fraction of 1 every image is copied, compared and counted."""
    world = World()
    await world.configure(traffic={"blue": 1}, shadow="green", shadow_fraction=1)
    assert await world.versions(4) == {"blue": 4}
    await until(lambda: world.metrics.calls["comparison", "green", "True"] == 4)
    shadow = (await world.status())["traffic"]["shadow"]
    assert shadow == {
        **{"variant": "green", "fraction": 1.0, "in_flight": 0},
        **{"compared": 4, "agreed": 4, "failed": 0, "dropped": 0},
    }


@in_virtual_time
async def test_a_slow_or_failing_shadow_delays_no_result() -> None:
    """Copies over MAX_IN_FLIGHT are dropped and counted; errors of the shadow are counted."""
    world = World()
    await world.configure(traffic={"blue": 1}, shadow="green", shadow_fraction=1)
    world.clients["green"].open.clear()
    assert await world.versions(MAX_IN_FLIGHT + 5) == {"blue": MAX_IN_FLIGHT + 5}
    shadow = (await world.status())["traffic"]["shadow"]
    assert (shadow["in_flight"], shadow["dropped"], shadow["compared"]) == (MAX_IN_FLIGHT, 5, 0)
    world.clients["green"].available = False
    world.clients["green"].open.set()
    await asyncio.sleep(1)
    assert (await world.status())["traffic"]["shadow"]["failed"] == MAX_IN_FLIGHT
    assert await world.classify() == "blue"


@pytest.mark.parametrize("error", [ModelFailedError("not finite"), RuntimeError("a crash in the stage")], ids=repr)
@in_virtual_time
async def test_a_shadow_that_fails_in_any_way_gets_later_copies(error: Exception) -> None:
    """Each failed copy is counted and gives its place back, so that copies are compared again afterwards."""
    world = World()
    await world.configure(traffic={"blue": 1}, shadow="green", shadow_fraction=1)
    world.clients["green"].error = error  # type: ignore[assignment] # a stage may return no other, but may raise one
    for _ in range(2 * MAX_IN_FLIGHT):
        assert await world.classify() == "blue"
        await asyncio.sleep(0.1)
    shadow = (await world.status())["traffic"]["shadow"]
    assert (shadow["failed"], shadow["in_flight"], shadow["dropped"]) == (2 * MAX_IN_FLIGHT, 0, 0)
    world.clients["green"].error = None
    await world.classify()
    await until(lambda: world.metrics.calls["comparison", "green", "True"] == 1)
