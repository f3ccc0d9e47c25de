"""Stage 1/3 and 3/3 · single requests -> batches, the moment who takes them is free.

A batch is formed when it can be taken and not before, so a queue makes full batches and an
idle service adds no wait. One image waits for others only when its sender says that others
are on their way, and never longer than ``max_batch_wait_ms``.

The ingress sends images to the next stage this way, several in one call when there are
several, and the classifier its model's batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serve_app.config import BatchConfig

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batched(Generic[Result]):
    """One item's result and how it travelled.

    Attributes:
        value: What ``run`` returned for the item.
        batch_size: Items in the batch as formed.
        queue_s: From submission to the start of its batch.
        model_s: Time the batch ran.
    """

    value: Result
    batch_size: int
    queue_s: float
    model_s: float


@dataclass(frozen=True)
class BatchRecord:
    """What happened to one batch, for metrics."""

    size: int
    queue_s: tuple[float, ...]
    model_s: float
    failed: int


@dataclass
class _Waiting(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Batched[Result]]
    since: float = field(default_factory=time.perf_counter)


class MicroBatcher(Generic[Item, Result]):
    """Feeds one consumer with batches from many concurrent callers.

    Args:
        run: Takes a list of items and gives as many results, in order; a result that is an
            exception is raised to that item's caller, an exception raised to all.
        tuning: Batch size and wait; ``reconfigure`` changes them live.
        workers: Batches that may be in ``run`` at a time.
        spread: Split what is there, what is on its way and what runs evenly over the workers: for workers that
            are cores of their own, so that none idles while another works on a long batch.
        on_batch: Called in the event loop after each batch.
        weigh: Weight of an item.
        max_weight: Most weight in one batch; an item that is heavier travels alone.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        tuning: BatchConfig,
        workers: int = 1,
        spread: bool = False,
        on_batch: Callable[[BatchRecord], None] = lambda record: None,
        weigh: Callable[[Item], int] = lambda item: 0,
        max_weight: int = 0,
    ) -> None:
        """Start idle; the loop starts with the first ``submit``."""
        self._run, self._spread, self._on_batch = run, spread, on_batch
        self._weigh, self._max_weight = weigh, max_weight
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._changed = asyncio.Event()
        self._running: dict[asyncio.Task[None], tuple[int, float]] = {}  # items, and when they were taken
        self._expected = 0  # items that wait or are on their way, as the newest arrival knows best
        self._pace_s = math.inf  # of the last batch, per item
        self._loop: asyncio.Task[None] | None = None
        self.reconfigure(tuning, workers)

    def reconfigure(self, tuning: BatchConfig, workers: int = 1) -> None:
        """Use other values from the next batch on."""
        self._tuning, self._workers = tuning, workers
        self._changed.set()

    async def submit(self, item: Item, company: int = 1) -> Batched[Result]:
        """Add an item to the next batch and wait for its result.

        Args:
            item: Handed to ``run``.
            company: Items that the caller has under way, this one and those that run included.

        Raises:
            Exception: What ``run`` gave for this item, or raised.
        """
        if self._loop is None:
            self._loop = asyncio.create_task(self._serve())
        waiting: _Waiting[Item, Result] = _Waiting(item, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._expected = company - sum(size for size, _ in self._running.values())
        self._changed.set()
        return await waiting.future

    async def close(self) -> None:
        """Stop; items that wait or are in ``run`` are cancelled."""
        tasks = [*self._running, *([self._loop] if self._loop else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for waiting in self._waiting:
            waiting.future.cancel()

    async def _serve(self) -> None:
        while True:
            batch = await self._form()
            task = asyncio.create_task(self._take(batch))
            self._running[task] = len(batch), time.perf_counter()
            self._expected -= len(batch)
            task.add_done_callback(self._free)

    def _free(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._changed.set()

    async def _take(self, batch: list[_Waiting[Item, Result]]) -> None:
        """Run one batch and hand its results out."""
        start = time.perf_counter()
        results: Sequence[Result | Exception]
        try:
            results = await self._run([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} items gave {len(results)} results")
        except Exception as error:
            results = [error] * len(batch)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.future.cancel()
            raise
        model_s = time.perf_counter() - start
        self._pace_s = model_s / len(batch)
        queue_s = tuple(start - waiting.since for waiting in batch)
        for waiting, result, queued in zip(batch, results, queue_s, strict=True):
            if waiting.future.done():  # its caller went away meanwhile
                continue
            if isinstance(result, Exception):
                waiting.future.set_exception(result)
            else:
                waiting.future.set_result(Batched(result, len(batch), queued, model_s))
        failed = sum(isinstance(result, Exception) for result in results)
        self._on_batch(BatchRecord(len(batch), queue_s, model_s, failed))

    async def _form(self) -> list[_Waiting[Item, Result]]:
        """Wait until a lane is free and a batch worth running; take it from the queue."""
        while True:
            self._changed.clear()
            patience = None
            if len(self._running) < self._workers:
                while self._waiting and self._waiting[0].future.done():
                    self._waiting.popleft()  # nobody waits for it any more
                if self._waiting:
                    expected = max(self._expected, len(self._waiting))
                    most = self._share(expected)
                    patience = self._waiting[0].since + self._tuning.max_batch_wait_ms / 1000 - time.perf_counter()
                    if len(self._waiting) >= min(most, expected) or patience <= 0:
                        return self._pop(most)
            if patience is None:
                await self._changed.wait()
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), patience)

    def _share(self, items: int) -> int:
        """How many of these items the next batch may hold."""
        if self._spread:
            now = time.perf_counter()
            left = sum(max(0.0, size - (now - since) / self._pace_s) for size, since in self._running.values())
            items = math.ceil((items + left) / self._workers)
        return min(self._tuning.max_batch_size, items)

    def _pop(self, most: int) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        weight = 0
        while self._waiting and len(batch) < most:
            waiting = self._waiting[0]
            if not waiting.future.done():
                weight += self._weigh(waiting.item)
                if batch and weight > self._max_weight > 0:
                    break
                batch.append(waiting)
            self._waiting.popleft()
        return batch


class ThreadRunner(Generic[Item, Result]):
    """A blocking function as a MicroBatcher's ``run``: one dedicated thread per lane.

    The event loop keeps answering meanwhile. A batch that raises is run again in halves,
    so that only the culprit fails.
    """

    def __init__(self, run: Callable[[list[Item]], Sequence[Result]], threads: int = 1) -> None:
        """Start the threads with the first batch."""
        self._run = run
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="model")

    async def __call__(self, items: list[Item]) -> Sequence[Result | Exception]:
        """Run a batch; the culprits' results are what they raised."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._isolate, items)

    def close(self) -> None:
        """Wait for the batches that run, and end the threads."""
        self._threads.shutdown(wait=True)

    def _isolate(self, items: list[Item]) -> list[Result | Exception]:
        try:
            results = self._run(items)
            if len(results) != len(items):
                raise RuntimeError(f"{len(items)} items gave {len(results)} results")
        except Exception as error:
            if len(items) == 1:
                return [error]
            half = len(items) // 2
            return self._isolate(items[:half]) + self._isolate(items[half:])
        return list(results)
