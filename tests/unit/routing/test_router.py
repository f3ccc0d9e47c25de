"""The router: live changes of the shares, choice of the variant, shadow copies."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from serve_app.config import LimitsConfig
from serve_app.deadline import Deadline
from serve_app.errors import NotReadyError, OverloadedError, UnfetchableImageError, UnknownModelError
from serve_app.image_url import ImageUrl
from serve_app.images_by_url_config import ImagesByUrlConfig
from serve_app.messages import RemoteImage, RequestContext
from serve_app.routing.shadow import MAX_IN_FLIGHT, Comparison, compare
from serve_app.routing.traffic_split import VariantChoice
from tests.support.clock import in_virtual_time
from tests.support.variants import REQUEST, World, result, until


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
async def test_overload_stays_with_its_variant() -> None:
    """Only unavailability moves images to another variant; overload does not."""
    world = World()
    await world.configure(traffic={"blue": 1, "green": 0})
    world.clients["blue"].error = OverloadedError("too much")
    with pytest.raises(OverloadedError):
        await world.classify()
    assert world.clients["green"].images == 0


@in_virtual_time
async def test_another_variant_fetches_an_image_by_url() -> None:
    """One that is unavailable is replaced unless the client named it; an error of the image is not tried again."""
    world, url = World(), ImageUrl.parse("https://photos.example/")
    config = ImagesByUrlConfig(allowed_hosts=("photos.example",))
    image = RemoteImage(url, config, LimitsConfig(), RequestContext("req", 0, Deadline(60)))
    await world.configure(traffic={"blue": 1, "green": 1})
    assert await world.router.fetch(image, VariantChoice("blue")) == b"blue"
    world.clients["blue"].available = False
    assert await world.router.fetch(image, VariantChoice("blue")) == b"green"
    with pytest.raises(NotReadyError):
        await world.router.fetch(image, VariantChoice("blue", named_by_client=True))
    world.clients["green"].error = UnfetchableImageError("no image")
    with pytest.raises(UnfetchableImageError):
        await world.router.fetch(image, VariantChoice("green"))


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


@in_virtual_time
async def test_callers_take_turns_while_all_calls_are_in_use() -> None:
    """Images of a caller with one leave after one of the other's, not after all of them."""
    world, finished = World(), list[str | None]()
    await world.configure(max_inflight_groups=1, max_group_size=1)

    async def classify(caller: str) -> None:
        request = replace(REQUEST, context=RequestContext("req", 0, Deadline(60), caller=caller))
        await world.router.classify(request, VariantChoice("main"))
        finished.append(caller)

    async with asyncio.TaskGroup() as clients:
        for _ in range(20):
            clients.create_task(classify("heavy"))
        clients.create_task(classify("light"))
    assert "light" in finished[:3]
