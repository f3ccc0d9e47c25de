"""The router: variants, models and shadows that fail, and how they get requests again."""

from __future__ import annotations

import asyncio

import pytest

from serve_app.errors import ModelFailedError, NotReadyError, OverloadedError
from serve_app.routing.shadow import MAX_IN_FLIGHT
from tests.support.clock import in_virtual_time
from tests.support.variants import World, until


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
