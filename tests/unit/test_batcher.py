"""Stage 3: batches form by themselves, full under load, at once when alone, and isolate failures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from serve_app.batcher import BatchRecord, MicroBatcher, ThreadRunner
from serve_app.config import BatchConfig


class Model:
    """Doubles numbers; raises on negative ones; remembers its batches."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.seconds = seconds

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        time.sleep(self.seconds)
        if any(item < 0 for item in items):
            raise ValueError(f"negative in {items}")
        return [2 * item for item in items]


async def test_results_reach_their_callers() -> None:
    batcher = MicroBatcher(ThreadRunner(Model()), BatchConfig(max_batch_size=4))
    results = await asyncio.gather(*(batcher.submit(i, 50) for i in range(50)))
    assert [result.value for result in results] == [2 * i for i in range(50)]
    await batcher.close()


async def test_a_busy_model_gathers_full_batches() -> None:
    """While one batch runs, the next fills up to the maximum."""
    model = Model(0.02)
    batcher = MicroBatcher(ThreadRunner(model), BatchConfig(max_batch_size=8, max_batch_wait_ms=0))
    results = await asyncio.gather(*(batcher.submit(i) for i in range(33)))
    assert [len(batch) for batch in model.batches] == [8, 8, 8, 8, 1]
    assert max(result.batch_size for result in results) == 8
    await batcher.close()


async def test_alone_means_no_wait() -> None:
    """A single image does not wait for company that nobody announced."""
    batcher = MicroBatcher(ThreadRunner(Model()), BatchConfig(max_batch_size=8, max_batch_wait_ms=1000))
    result = await batcher.submit(1)
    assert result.queue_s < 0.2
    await batcher.close()


async def test_announced_company_is_waited_for() -> None:
    """Images that are on their way share the batch of the first."""
    model = Model()
    batcher = MicroBatcher(ThreadRunner(model), BatchConfig(max_batch_size=8, max_batch_wait_ms=1000))

    async def late(i: int) -> None:
        await asyncio.sleep(0.02 * i)
        await batcher.submit(i, 3)

    await asyncio.gather(late(0), late(1), late(2))
    assert model.batches == [[0, 1, 2]]
    await batcher.close()


async def test_few_items_are_spread_over_the_lanes() -> None:
    """Two cores and eight images: four each, and a batch that runs does not take what the other core could."""
    records: list[BatchRecord] = []
    batcher = MicroBatcher(
        ThreadRunner(Model(), 2), BatchConfig(max_batch_size=8), workers=2, spread=True, on_batch=records.append
    )
    await asyncio.gather(*(batcher.submit(i, 8) for i in range(8)))
    assert [record.size for record in records] == [4, 4]
    records.clear()
    await asyncio.gather(*(batcher.submit(i, 64) for i in range(16)))  # many more are coming: no reason to split
    assert [record.size for record in records] == [8, 8]
    await batcher.close()


async def test_what_is_left_is_shared_with_the_lane_that_is_free_next() -> None:
    """Twenty images that came in one request, on two cores: eight each, and the last four are not one core's alone."""
    gates: dict[int, asyncio.Event] = {}
    sizes: list[int] = []

    async def run(items: list[int]) -> list[int]:
        sizes.append(len(items))
        gate = gates[len(sizes)] = asyncio.Event()
        await gate.wait()
        return items

    batcher = MicroBatcher(run, BatchConfig(max_batch_size=8), workers=2, spread=True)
    answers = asyncio.gather(*(batcher.submit(i, 20) for i in range(20)))
    await asyncio.sleep(0.1)
    assert sizes == [8, 8]
    gates[1].set()  # the other must be about to end too
    await asyncio.sleep(0.01)
    assert sizes[2] in (2, 3)
    for gate in gates.values():
        gate.set()
    await asyncio.sleep(0.01)
    assert sum(sizes) == 20
    for gate in gates.values():
        gate.set()
    assert [answer.value for answer in await answers] == [*range(20)]
    await batcher.close()


async def test_the_wait_has_an_end() -> None:
    """Company that never comes costs max_batch_wait_ms, not more."""
    batcher = MicroBatcher(ThreadRunner(Model()), BatchConfig(max_batch_size=8, max_batch_wait_ms=50))
    result = await batcher.submit(1, company=5)
    assert 0.04 < result.queue_s < 0.5
    await batcher.close()


async def test_a_failure_costs_only_its_own_item() -> None:
    """One bad item among sixteen: fifteen results, one error, and the batcher goes on."""
    records: list[BatchRecord] = []
    batcher = MicroBatcher(ThreadRunner(Model()), BatchConfig(max_batch_size=16), on_batch=records.append)
    results = await asyncio.gather(
        *(batcher.submit(-1 if i == 5 else i, 16) for i in range(16)), return_exceptions=True
    )
    assert isinstance(results[5], ValueError)
    assert [r.value for i, r in enumerate(results) if i != 5] == [2 * i for i in range(16) if i != 5]  # type: ignore[union-attr] # checked above
    assert [(record.size, record.failed) for record in records] == [(16, 1)]
    assert (await batcher.submit(7)).value == 14
    await batcher.close()


async def test_a_wrong_number_of_results_is_an_error() -> None:
    batcher = MicroBatcher(ThreadRunner(lambda items: []), BatchConfig())
    with pytest.raises(RuntimeError, match="1 items gave 0 results"):
        await batcher.submit(1)
    await batcher.close()


async def test_work_nobody_waits_for_is_not_done() -> None:
    """A caller that gives up while queued leaves the queue."""
    model = Model(0.05)
    batcher = MicroBatcher(ThreadRunner(model), BatchConfig(max_batch_size=1))
    first = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0.01)
    second, third = (asyncio.create_task(batcher.submit(i)) for i in (2, 3))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(first, third)
    assert model.batches == [[1], [3]]
    await batcher.close()


async def test_tuning_is_live() -> None:
    model = Model(0.01)
    batcher = MicroBatcher(ThreadRunner(model), BatchConfig(max_batch_size=1))
    await asyncio.gather(*(batcher.submit(i) for i in range(4)))
    batcher.reconfigure(BatchConfig(max_batch_size=4))
    await asyncio.gather(*(batcher.submit(i, 4) for i in range(4)))
    assert [len(batch) for batch in model.batches] == [1, 1, 1, 1, 4]
    await batcher.close()


async def test_the_event_loop_stays_free() -> None:
    """The model runs in its own thread, always the same one."""
    threads = []

    def run(items: Sequence[int]) -> Sequence[int]:
        threads.append(threading.current_thread().name)
        time.sleep(0.05)
        return items

    batcher = MicroBatcher(ThreadRunner(run), BatchConfig())
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    for i in range(3):
        await batcher.submit(i)
    ticking.cancel()
    assert ticks >= 5
    assert set(threads) == {"model_0"}
    await batcher.close()
