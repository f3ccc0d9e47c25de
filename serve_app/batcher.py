"""Dynamic batching: queued items become a batch as soon as a worker is free.

A batch forms only when a worker can take it, so a queue fills batches and an idle service adds no wait. A lone item
waits for more items only if its sender reports that more are in flight, and never longer than ``max_batch_wait_ms``.

Two stages use it: the ingress groups images into calls to the next stage, the classifier forms the model's batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve_app.config import BatchConfig
from serve_app.errors import ModelFailedError
from serve_app.fair_queue import FairQueue

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ItemResult(Generic[Result]):
    """Result of one item, and how its batch ran."""

    value: Result  # what ``run`` returned for the item
    batch_size: int
    queue_s: float  # from submission to the start of the batch
    run_s: float  # of the whole batch


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """Measurements of one batch, for metrics."""

    size: int
    queue_s: tuple[float, ...]
    run_s: float
    errors: tuple[Exception, ...]  # of the items that failed

    @property
    def failed(self) -> int:
        """How many items failed."""
        return len(self.errors)


@dataclass(slots=True)
class _Queued(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[ItemResult[Result]]
    since: float


class MicroBatcher(Generic[Item, Result]):
    """Feeds workers with batches from many concurrent callers.

    Args:
        run: Takes a list of items and returns as many results in the same order. A result that is an exception goes
            to that item's caller; an exception that is raised goes to all callers.
        config: Batch size and wait; ``reconfigure`` changes them live.
        workers: Batches that may be in ``run`` at the same time.
        balance: Split the known items evenly between the workers. For workers that are CPU cores: none idles while
            another one works on a long batch.
        on_batch: Called in the event loop after each batch.
        weigh: Weight of an item.
        max_weight: Largest weight of a batch; a heavier item travels in a batch of its own.
        refuse: Gets an item whose turn it is and the seconds of the slowest of the last batch and those that run. If
            it returns an exception, the item's caller gets that, and the item is in no batch. An idle worker takes
            every item without asking.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        config: BatchConfig,
        workers: int = 1,
        balance: bool = False,
        on_batch: Callable[[BatchRecord], None] = lambda record: None,
        weigh: Callable[[Item], int] = lambda item: 0,
        max_weight: int = 0,
        refuse: Callable[[Item, float], Exception | None] | None = None,
    ) -> None:
        self._run, self._balance, self._on_batch = run, balance, on_batch
        self._weigh, self._max_weight, self._refuse = weigh, max_weight, refuse
        self._queue: FairQueue[_Queued[Item, Result]] = FairQueue()
        self._changed = asyncio.Event()
        self._running: dict[asyncio.Task[None], tuple[int, float]] = {}  # size and start time of each batch
        self._expected = 0  # items that are queued or announced, by the newest submission's hint
        self._run_s = 0.0  # of the last batch
        self._item_s = math.inf  # seconds per item of the last batch
        self._loop: asyncio.Task[None] | None = None  # starts with the first ``submit``
        self.reconfigure(config, workers)

    def reconfigure(self, config: BatchConfig, workers: int = 1) -> None:
        """Use other settings from the next batch on."""
        self._config, self._workers = config, workers
        self._changed.set()

    async def submit(self, item: Item, in_flight_hint: int = 1, caller: Hashable = None) -> ItemResult[Result]:
        """Queue an item and return its result, or raise what ``run`` returned for this item or raised.

        Args:
            item: What ``run`` gets.
            in_flight_hint: Items that the sender has in flight, this item and running items included.
            caller: Callers take turns in the queue.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = asyncio.create_task(self._serve())
        queued: _Queued[Item, Result] = _Queued(item, loop.create_future(), loop.time())
        self._queue.append(queued, caller)
        self._expected = in_flight_hint - sum(size for size, _ in self._running.values())
        self._changed.set()
        return await queued.future

    async def close(self) -> None:
        """Stop; queued and running items are cancelled."""
        tasks = [*self._running, *([self._loop] if self._loop else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for queued in self._queue:
            queued.future.cancel()

    async def _serve(self) -> None:
        while True:
            batch = await self._form_batch()
            task = asyncio.create_task(self._run_batch(batch))
            self._running[task] = len(batch), _now()
            self._expected -= len(batch)
            task.add_done_callback(self._release_worker)

    def _release_worker(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._changed.set()

    async def _run_batch(self, batch: list[_Queued[Item, Result]]) -> None:
        start = _now()
        results: Sequence[Result | Exception]
        try:
            results = await self._run([queued.item for queued in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} items gave {len(results)} results")
        except Exception as error:
            results = [error] * len(batch)
        except asyncio.CancelledError:
            for queued in batch:
                queued.future.cancel()
            raise
        run_s = _now() - start
        self._run_s, self._item_s = run_s, run_s / len(batch)
        queue_s = tuple(start - queued.since for queued in batch)
        for queued, result, waited_s in zip(batch, results, queue_s, strict=True):
            if queued.future.done():  # its caller was cancelled meanwhile
                continue
            if isinstance(result, Exception):
                queued.future.set_exception(result)
            else:
                queued.future.set_result(ItemResult(result, len(batch), waited_s, run_s))
        errors = tuple(result for result in results if isinstance(result, Exception))
        self._on_batch(BatchRecord(len(batch), queue_s, run_s, errors))

    async def _form_batch(self) -> list[_Queued[Item, Result]]:
        """Wait for a free worker and enough items; take them from the queue."""
        while True:
            self._changed.clear()
            wait_s = None
            if len(self._running) < self._workers:
                while self._queue and self._leaves(self._queue.first()):
                    self._queue.popleft()
                if self._queue:
                    expected = max(self._expected, len(self._queue))
                    size = self._batch_size(expected)
                    wait_s = self._queue.first().since + self._config.max_batch_wait_ms / 1000 - _now()
                    if (len(self._queue) >= min(size, expected) or wait_s <= 0) and (batch := self._take(size)):
                        return batch
            if wait_s is None:
                await self._changed.wait()
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait_s)

    def _leaves(self, queued: _Queued[Item, Result]) -> bool:
        """Return whether an item leaves the queue without a batch: its caller was cancelled, or it is refused."""
        if self._refuse and self._running and not queued.future.done():
            run_s = max(self._run_s, _now() - min(since for _, since in self._running.values()))
            if error := self._refuse(queued.item, run_s):
                queued.future.set_exception(error)
        return queued.future.done()

    def _batch_size(self, items: int) -> int:
        """Largest size of the next batch, given the number of known items."""
        if self._balance:
            now = _now()
            left = sum(max(0.0, size - (now - since) / self._item_s) for size, since in self._running.values())
            items = math.ceil((items + left) / self._workers)
        return min(self._config.max_batch_size, items)

    def _take(self, size: int) -> list[_Queued[Item, Result]]:
        batch: list[_Queued[Item, Result]] = []
        weight = 0
        while self._queue and len(batch) < size:
            queued = self._queue.first()
            if not self._leaves(queued):
                weight += self._weigh(queued.item)
                if batch and weight > self._max_weight > 0:
                    break
                batch.append(queued)
            self._queue.popleft()
        return batch


class ThreadRunner(Generic[Item, Result]):
    """Runs a blocking function as a MicroBatcher's ``run``: one thread per worker, the event loop stays free."""

    def __init__(self, run: Callable[[list[Item]], Sequence[Result]], threads: int = 1) -> None:
        self._run = run
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="model")

    async def __call__(self, items: list[Item]) -> Sequence[Result | Exception]:
        """Run a batch; an item at fault gets its exception as the result."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, run_isolated, self._run, items)

    def close(self) -> None:
        """Wait for running batches and end the threads."""
        self._threads.shutdown(wait=True)


def run_isolated(run: Callable[[list[Item]], Sequence[Result]], items: list[Item]) -> list[Result | Exception]:
    """Run a batch; if it raises, run it again in halves, so that only the items at fault fail.

    A batch that needs too much memory is thus split as well. ModelFailedError is no item's fault and fails the batch.

    Returns:
        One result per item in the same order, or the exception of an item at fault.
    """
    try:
        results = run(items)
        if len(results) != len(items):
            raise RuntimeError(f"{len(items)} items gave {len(results)} results")
        return list(results)
    except ModelFailedError as error:
        return [error] * len(items)
    except Exception as error:
        if len(items) == 1:
            return [error]
    # Outside of the block above: the exception's traceback keeps the batch's arrays in memory.
    half = len(items) // 2
    return run_isolated(run, items[:half]) + run_isolated(run, items[half:])


def _now() -> float:
    return asyncio.get_running_loop().time()
