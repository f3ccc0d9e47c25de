"""Which variant answers: shares, clients that stay, names, switching, failing over, shadow."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from serve_app.config import IngressConfig, parse
from serve_app.deadline import Deadline
from serve_app.errors import NotReadyError, OverloadedError, ServiceError, UnknownModelError
from serve_app.http.service import Answer, Choice, Wanted
from serve_app.messages import Classification, ImageInfo, ModelState
from serve_app.model_card import ImageTransform, ModelCard
from serve_app.routing.router import SHADOWS_AT_ONCE, VariantRouter
from serve_app.routing.shadow import Comparison, compare
from serve_app.routing.traffic_split import Traffic, pick

CLIENTS = [f"client {n}" for n in range(4000)]
IMAGE = ImageInfo(format="jpeg", width=1, height=1, orientation=1)
WANTED = Wanted(b"photo", 2, None, 10**7, Deadline(60))
ANYONE = (None, None)


def card(version: str) -> ModelCard:
    transform = ImageTransform(resize_px=96, crop_px=96, mean=(0, 0, 0), std=(1, 1, 1))
    labels = (f"cat of {version}", f"dog of {version}")
    return ModelCard(name="resnet18", version=version, labels=labels, transform=transform, sha256="0" * 64)


def answer(version: str, labels: tuple[str, ...] = ("cat", "dog"), scores: tuple[float, ...] = (0.9, 0.1)) -> Answer:
    ids = tuple(range(len(labels)))
    found = Classification(class_ids=ids, scores=scores, margin=0.8, entropy=0.3)
    return Answer(IMAGE, found, card(version).ref, dict(enumerate(labels)), {"queue": 0.0}, 1)


class FakeLink:
    """A variant that answers with its version, or is not there."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.there, self.images = True, 0
        self.error: ServiceError | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, wanted: list[Wanted], company: int) -> list[Answer | ServiceError]:
        await self.open.wait()
        if not self.there:
            raise NotReadyError(f"{self.version} is gone")
        self.images += len(wanted)
        return [self.error or answer(self.version) for _ in wanted]

    async def ask(self) -> ModelState:
        if not self.there:
            raise NotReadyError(f"{self.version} is gone")
        return ModelState(card=card(self.version))


class NoMetrics:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, ...]] = Counter()

    def answered(self, variant: str, answer: Answer, seconds: float) -> None:
        self.calls["answered", variant, answer.model.version] += 1

    def failed(self, variant: str, code: str) -> None:
        self.calls["failed", variant, code] += 1

    def compared(self, variant: str, version: str, found: Comparison) -> None:
        self.calls["compared", variant, str(found.agree)] += 1


class World:
    """Variants blue and green, and what becomes of requests."""

    def __init__(self) -> None:
        self.links = {name: FakeLink(name) for name in ("main", "blue", "green")}
        self.metrics = NoMetrics()
        self.variants = VariantRouter(lambda name: self.links.get(name) or gone(name), self.metrics)

    async def set(self, **user_config: object) -> None:
        self.variants.reconfigure(parse(IngressConfig, user_config))
        await self.variants.check_ready()

    async def ask(self, asked: str | None = None, client: str | None = None) -> str:
        choice = self.variants.choose(asked, client)
        return (await self.variants.classify(choice, WANTED)).model.version

    async def answers(self, count: int = 50) -> Counter[str]:
        return Counter([await self.ask() for _ in range(count)])


def gone(name: str) -> FakeLink:
    link = FakeLink(name)
    link.there = False
    return link


async def until(condition: Callable[[], object], timeout_s: float = 5) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_shares_are_kept_with_and_without_clients() -> None:
    """Of 4000 requests about 5 % go to the canary, whoever sends them."""
    shares = {"blue": 95.0, "green": 5.0}
    for who in ([None] * 4000, CLIENTS):
        assert 140 < sum(pick(shares, client) == "green" for client in who) < 260


def test_a_client_stays_with_its_variant() -> None:
    """The same client gets the same variant each time; a larger canary only takes clients, and as many as it must."""
    five, ten = ({client: pick({"blue": 100 - n, "green": n}, client) for client in CLIENTS} for n in (5.0, 10.0))
    assert five == {client: pick({"green": 5.0, "blue": 95.0}, client) for client in CLIENTS}
    moved = [client for client in CLIENTS if five[client] != ten[client]]
    assert all(five[client] == "blue" for client in moved)
    assert len(moved) == sum(v == "green" for v in ten.values()) - sum(v == "green" for v in five.values())
    assert 130 < len(moved) < 270


def test_a_third_variant_takes_only_its_share() -> None:
    """Clients that do not go to the new one stay where they were."""
    two = {client: pick({"a": 1.0, "b": 1.0}, client) for client in CLIENTS}
    three = {client: pick({"a": 1.0, "b": 1.0, "c": 1.0}, client) for client in CLIENTS}
    assert {three[client] for client in CLIENTS if three[client] != two[client]} == {"c"}


def test_names_and_shares_of_a_configuration() -> None:
    """Largest share first; a share of 0 answers by name only; the shadow belongs to them."""
    traffic = Traffic.of(parse(IngressConfig, {"traffic": {"a": 0, "b": 1, "c": 3}, "shadow": "d"}))
    assert traffic.names == ("c", "b", "a", "d")
    assert traffic.serving == {"b": 1, "c": 3}
    assert Traffic.of(IngressConfig()).names == ("main",)


@pytest.mark.parametrize(
    ("user_config", "sentence"),
    [
        ({"traffic": {"blue": 0}}, "no variant has a share above 0"),
        ({"traffic": {}}, "no variant has a share above 0"),
        ({"traffic": {"blue": -1}}, "traffic.blue: .*greater than or equal to 0"),
        ({"traffic": {"blue": float("inf")}}, "traffic.blue: .*finite"),
        ({"shadow_fraction": 2}, "shadow_fraction: .*less than or equal to 1"),
    ],
)
def test_shares_that_make_no_sense_are_refused(user_config: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse(IngressConfig, user_config)


def test_answers_are_compared_by_label() -> None:
    """Class ids of two models mean different things; a label that the shadow does not name counts as 0."""
    given = answer("a")
    assert compare(given, answer("b", ("cat", "dog"), (0.7, 0.3))) == Comparison(True, pytest.approx(0.2))
    assert compare(given, answer("b", ("dog", "cat"), (0.6, 0.4))) == Comparison(False, pytest.approx(0.5))
    assert compare(given, answer("b", ("fox",), (1.0,))) == Comparison(False, pytest.approx(0.9))


async def test_switch_and_way_back_without_a_failure() -> None:
    """Blue -> green -> blue by configuration, under requests: each is answered, at the end by the one that is meant."""
    world = World()
    await world.set(traffic={"blue": 1})
    over, seen = asyncio.Event(), Counter[str]()

    async def client() -> None:
        while not over.is_set():
            seen[await world.ask()] += 1
            await asyncio.sleep(0)

    clients = [asyncio.create_task(client()) for _ in range(5)]
    for name in ("green", "blue", "green", "blue"):
        await world.set(traffic={name: 1})
        await until(lambda name=name: world.variants.choose(*ANYONE) == Choice(name))
        await asyncio.sleep(0.02)
    over.set()
    await asyncio.gather(*clients)
    assert set(seen) == {"blue", "green"}


async def test_a_name_that_nobody_answers_to_changes_nothing() -> None:
    """A misspelled variant costs no request: the shares stay, and the status says whom they wait for."""
    world = World()
    await world.set(traffic={"blue": 1})
    await world.set(traffic={"gren": 1})
    await until(lambda: world.variants._waiting_for)
    assert await world.answers(5) == {"blue": 5}
    assert (await world.variants.describe())["traffic"]["waiting_for"] == "gren: gren is gone"
    await world.set(traffic={"green": 1})
    await until(lambda: world.variants.choose(*ANYONE) == Choice("green"))
    assert (await world.variants.describe())["traffic"]["waiting_for"] is None


async def test_shares_hold_once_a_late_variant_answers() -> None:
    """Requests stay with the old one until the new one is there."""
    world = World()
    world.links["green"].there = False
    await world.set(traffic={"blue": 1})
    await world.set(traffic={"green": 1})
    assert await world.answers(5) == {"blue": 5}
    world.links["green"].there = True
    await until(lambda: world.variants.choose(*ANYONE) == Choice("green"))
    assert await world.answers(5) == {"green": 5}


async def test_ready_is_who_has_somebody_to_ask() -> None:
    """An ingress that starts takes no requests until then."""
    world = World()
    world.links["blue"].there = False
    with pytest.raises(NotReadyError):
        await world.set(traffic={"blue": 1})
    world.links["blue"].there = True
    await world.variants.check_ready()
    assert await world.ask() == "blue"


async def test_another_variant_takes_over_from_a_lost_one() -> None:
    """No request fails, and the lost one gets its share again when it is back."""
    world = World()
    await world.set(traffic={"blue": 1, "green": 1})
    world.links["green"].there = False
    assert await world.answers() == {"blue": 50}
    world.links["green"].there = True
    await until(lambda: world.variants._variant("green").trouble is None)
    assert set(await world.answers()) == {"blue", "green"}


async def test_other_errors_stay_with_their_variant() -> None:
    """Overload of one variant must not become load on the other."""
    world = World()
    await world.set(traffic={"blue": 1, "green": 0})
    world.links["blue"].error = OverloadedError("too much")
    with pytest.raises(OverloadedError):
        await world.ask()
    assert world.links["green"].images == 0


async def test_a_header_picks_a_variant_and_nothing_else() -> None:
    """By name also one without a share; no other answers in its place; unknown names are 404."""
    world = World()
    await world.set(traffic={"blue": 1, "green": 0})
    assert await world.ask("green") == "green"
    assert "green" not in await world.answers()
    with pytest.raises(UnknownModelError, match=r"no variant 'gren' here; there is 'blue', 'green'"):
        world.variants.choose("gren", None)
    world.links["green"].there = False
    with pytest.raises(NotReadyError):
        await world.ask("green")


async def test_new_weights_are_noticed_by_their_answers() -> None:
    """An answer names the weights that made it; the card follows."""
    world = World()
    await world.set(traffic={"blue": 1})
    world.links["blue"].version = "blue 2"
    assert await world.ask() == "blue 2"
    await until(lambda: world.variants.cards()["blue"].version == "blue 2")


async def test_shadow_answers_are_compared_and_never_returned() -> None:
    world = World()
    await world.set(traffic={"blue": 1}, shadow="green", shadow_fraction=1)
    assert await world.answers(4) == {"blue": 4}
    await until(lambda: world.metrics.calls["compared", "green", "True"] == 4)
    shadow = (await world.variants.describe())["traffic"]["shadow"]
    assert shadow | {"variant": "green", "compared": 4, "agreed": 4, "failed": 0, "dropped": 0} == shadow


async def test_a_slow_or_failing_shadow_costs_no_answer() -> None:
    """More than a few copies under way are dropped and counted; its errors are counted."""
    world = World()
    await world.set(traffic={"blue": 1}, shadow="green", shadow_fraction=1)
    world.links["green"].open.clear()
    async with asyncio.timeout(2):
        assert await world.answers(SHADOWS_AT_ONCE + 5) == {"blue": SHADOWS_AT_ONCE + 5}
    shadow = (await world.variants.describe())["traffic"]["shadow"]
    assert (shadow["under_way"], shadow["dropped"], shadow["compared"]) == (SHADOWS_AT_ONCE, 5, 0)
    world.links["green"].there = False
    world.links["green"].open.set()
    await until(lambda: world.variants._shadows["failed"] == SHADOWS_AT_ONCE)
    assert await world.ask() == "blue"
