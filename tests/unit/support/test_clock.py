"""The clocks that other tests lean on."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.support.clock import FakeClock, in_virtual_time


def test_a_fake_clock_moves_only_when_moved() -> None:
    clock = FakeClock(5)
    assert (clock(), clock()) == (5, 5)
    clock.advance(0.5)
    assert clock() == 5.5


@in_virtual_time
async def test_timers_end_in_their_order_at_their_virtual_time() -> None:
    """An hour's sleep ends at once (a real one would exceed the test's time limit), after the shorter timers."""
    loop, ended = asyncio.get_running_loop(), []

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)
        ended.append((seconds, round(loop.time(), 6)))

    loop.call_later(2, ended.append, "two")
    await asyncio.gather(sleep(3600), sleep(1))
    assert ended == [(1, 1), "two", (3600, 3600)]


@in_virtual_time
async def test_a_timeout_ends_what_takes_too_long() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30):
            await asyncio.Event().wait()
    assert asyncio.get_running_loop().time() == pytest.approx(30)


@in_virtual_time
async def test_a_thread_wakes_a_loop_without_timers() -> None:
    """With no timer set the loop waits for the thread instead of ending or jumping."""
    released = threading.Event()
    worked = asyncio.create_task(asyncio.to_thread(released.wait, 30))
    await asyncio.sleep(0)
    threading.Timer(0.01, released.set).start()
    assert await worked
    assert asyncio.get_running_loop().time() == 0


def test_arguments_reach_the_test() -> None:
    """Fixtures and parameters pass through the decorator."""

    @in_virtual_time
    async def add(a: int, *, b: int) -> None:
        assert a + b == 3

    add(1, b=2)
    with pytest.raises(AssertionError):
        add(1, b=3)
