"""Batches: full under load, without a wait when idle, and isolated failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from serve_app.batcher import BatchRecord, MicroBatcher, ThreadRunner
from serve_app.config import BatchConfig
from serve_app.errors import ModelFailedError, OverloadedError
from tests.support.clock import in_virtual_time


class Model:
    """Doubles numbers and remembers its batches; raises on negative numbers."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        if any(item < 0 for item in items):
            raise ValueError(f"negative in {items}")
        return [2 * item for item in items]


class SlowModel(Model):
    """Takes time on the loop's clock."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def run(self, items: list[int]) -> list[int]:
        await asyncio.sleep(self.seconds)
        return self(items)


async def test_each_caller_gets_its_result() -> None:
    """Fifty concurrent submissions each get the result of their own item."""
    batcher = MicroBatcher(ThreadRunner(Model()), BatchConfig(max_batch_size=4))
    results = await asyncio.gather(*(batcher.submit(i, 50) for i in range(50)))
    assert [result.value for result in results] == [2 * i for i in range(50)]
    await batcher.close()


@in_virtual_time
async def test_a_busy_model_gets_full_batches() -> None:
    """While one batch runs, the next fills up to the maximum."""
    model = SlowModel(0.02)
    batcher = MicroBatcher(model.run, BatchConfig(max_batch_size=8, max_batch_wait_ms=0))
    results = await asyncio.gather(*(batcher.submit(i) for i in range(33)))
    assert [len(batch) for batch in model.batches] == [8, 8, 8, 8, 1]
    assert max(result.batch_size for result in results) == 8
    await batcher.close()


@in_virtual_time
async def test_a_lone_item_does_not_wait() -> None:
    """Without announced items a batch of one starts at once."""
    batcher = MicroBatcher(SlowModel(0.02).run, BatchConfig(max_batch_size=8, max_batch_wait_ms=1000))
    assert (await batcher.submit(1)).queue_s == 0
    await batcher.close()


@in_virtual_time
async def test_announced_items_share_the_batch() -> None:
    """An item waits for the items that its hint announces."""
    model = SlowModel(0)
    batcher = MicroBatcher(model.run, BatchConfig(max_batch_size=8, max_batch_wait_ms=1000))

    async def late(i: int) -> None:
        await asyncio.sleep(0.02 * i)
        await batcher.submit(i, 3)

    await asyncio.gather(late(0), late(1), late(2))
    assert model.batches == [[0, 1, 2]]
    await batcher.close()


@in_virtual_time
async def test_few_items_are_split_between_the_workers() -> None:
    """Eight items on two cores make batches of four; when many more are announced, batches are full."""
    records: list[BatchRecord] = []
    config = BatchConfig(max_batch_size=8)
    batcher = MicroBatcher(SlowModel(0.02).run, config, workers=2, balance=True, on_batch=records.append)
    await asyncio.gather(*(batcher.submit(i, 8) for i in range(8)))
    assert [record.size for record in records] == [4, 4]
    records.clear()
    await asyncio.gather(*(batcher.submit(i, 64) for i in range(16)))
    assert [record.size for record in records] == [8, 8]
    await batcher.close()


@in_virtual_time
async def test_the_last_items_are_shared_with_the_next_free_worker() -> None:
    """Of twenty items on two cores, eight run on each; the last four are split between the cores."""
    sizes: list[int] = []

    async def run(items: list[int]) -> list[int]:
        sizes.append(len(items))
        await asyncio.sleep(0.1 if len(sizes) == 1 else 0.11)  # the second batch ends just after the first
        return items

    batcher = MicroBatcher(run, BatchConfig(max_batch_size=8), workers=2, balance=True)
    results = await asyncio.gather(*(batcher.submit(i, 20) for i in range(20)))
    assert sizes[:2] == [8, 8]
    assert max(sizes[2:]) <= 3
    assert sum(sizes) == 20
    assert [result.value for result in results] == [*range(20)]
    await batcher.close()


@in_virtual_time
async def test_the_wait_is_bounded() -> None:
    """Announced items that never arrive cost max_batch_wait_ms."""
    batcher = MicroBatcher(SlowModel(0).run, BatchConfig(max_batch_size=8, max_batch_wait_ms=50))
    assert (await batcher.submit(1, in_flight_hint=5)).queue_s == pytest.approx(0.05)
    await batcher.close()


async def test_only_the_item_at_fault_fails() -> None:
    """One bad item among sixteen gives fifteen results and one error, and the batcher continues."""
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
    """A model that returns too few results fails its batch."""
    batcher = MicroBatcher(ThreadRunner(lambda items: []), BatchConfig())
    with pytest.raises(RuntimeError, match="1 items gave 0 results"):
        await batcher.submit(1)
    await batcher.close()


@in_virtual_time
async def test_a_cancelled_item_is_not_run() -> None:
    """A caller that is cancelled while queued leaves the queue."""
    model = SlowModel(0.05)
    batcher = MicroBatcher(model.run, BatchConfig(max_batch_size=1))
    first = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0.01)
    second, third = (asyncio.create_task(batcher.submit(i)) for i in (2, 3))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(first, third)
    assert model.batches == [[1], [3]]
    await batcher.close()


@in_virtual_time
async def test_an_item_that_would_be_late_is_refused() -> None:
    """Two batches of a second run at a time. Behind them, items with less time left get the error at their turn."""
    loop = asyncio.get_running_loop()
    model, asked = SlowModel(1), list[float]()

    def refuse(deadline: int, run_s: float) -> OverloadedError | None:
        asked.append(run_s)
        return OverloadedError("too late") if loop.time() - start + run_s > deadline else None

    batcher = MicroBatcher(model.run, BatchConfig(max_batch_size=1, max_batch_wait_ms=0), 2, refuse=refuse)
    start = loop.time()
    items = asyncio.gather(*(batcher.submit(i) for i in (3, 3, 3, 1, 1, 2)), return_exceptions=True)
    outcomes = [isinstance(outcome, OverloadedError) for outcome in await items]
    assert outcomes == [False, False, False, True, True, False]
    assert model.batches == [[3], [3], [3], [2]]
    asked.clear()
    await batcher.submit(0)
    assert asked == [], "an idle worker tries any item"
    await batcher.close()


@in_virtual_time
async def test_settings_change_live() -> None:
    """A larger max_batch_size holds from the next batch on."""
    model = SlowModel(0.01)
    batcher = MicroBatcher(model.run, BatchConfig(max_batch_size=1))
    await asyncio.gather(*(batcher.submit(i) for i in range(4)))
    batcher.reconfigure(BatchConfig(max_batch_size=4))
    await asyncio.gather(*(batcher.submit(i, 4) for i in range(4)))
    assert [len(batch) for batch in model.batches] == [1, 1, 1, 1, 4]
    await batcher.close()


async def test_the_event_loop_stays_free() -> None:
    """The model runs in one thread of its own; the loop handles events while a batch runs."""
    names: list[str] = []
    started, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def run(items: Sequence[int]) -> Sequence[int]:
        names.append(threading.current_thread().name)
        loop.call_soon_threadsafe(started.set)
        may_end.wait(60)
        return items

    batcher = MicroBatcher(ThreadRunner(run), BatchConfig())
    first = asyncio.create_task(batcher.submit(1))
    await started.wait()  # only a free loop gets here
    may_end.set()
    await first
    await batcher.submit(2)
    assert names == ["model_0", "model_0"]
    await batcher.close()


async def test_a_batch_that_does_not_fit_into_memory_runs_in_parts() -> None:
    """The failed batch's memory is free before its halves run, and only an item that does not fit alone fails."""
    alive: set[int] = set()

    class Block:
        def __init__(self, items: Sequence[int]) -> None:
            self.key = id(self)
            alive.add(self.key)

        def __del__(self) -> None:
            alive.discard(self.key)

    def run(items: list[int]) -> list[int]:
        assert not alive, "an earlier batch is still in memory"
        block = Block(items)
        if len(items) > 2 or 7 in items:
            raise MemoryError(f"{block.key}")
        return [2 * item for item in items]

    batcher = MicroBatcher(ThreadRunner(run), BatchConfig(max_batch_size=8))
    results = await asyncio.gather(*(batcher.submit(i, 8) for i in range(8)), return_exceptions=True)
    assert [r.value for r in results[:7]] == [2 * i for i in range(7)]  # type: ignore[union-attr] # no error
    assert isinstance(results[7], MemoryError)
    await batcher.close()


async def test_a_broken_model_is_not_asked_again() -> None:
    """ModelFailedError is no item's fault: the batch fails at once, and its record has the errors."""
    batches: list[int] = []
    records: list[BatchRecord] = []

    def run(items: list[int]) -> list[int]:
        batches.append(len(items))
        raise ModelFailedError("not finite")

    batcher = MicroBatcher(ThreadRunner(run), BatchConfig(max_batch_size=8), on_batch=records.append)
    results = await asyncio.gather(*(batcher.submit(i, 8) for i in range(8)), return_exceptions=True)
    assert {type(result) for result in results} == {ModelFailedError}
    assert (batches, records[0].failed) == ([8], 8)
    await batcher.close()
