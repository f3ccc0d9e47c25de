"""Stage 3/3 · single requests -> batches, the moment the model is free.

A batch is formed when the model can take it and not before, so a queue makes full batches
and an idle service adds no wait. One image waits for others only when its sender says that
others are on their way, and never longer than ``max_wait_ms``.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serve_app.config import BatchTuning

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batched(Generic[Result]):
    """One item's result and how it travelled.

    Attributes:
        value: What ``run`` returned for the item.
        batch_size: Items in the batch as formed.
        queue_s: From submission to the start of its batch.
        model_s: Time the batch ran, retries included.
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
    company: int
    future: asyncio.Future[Batched[Result]]
    since: float = field(default_factory=time.perf_counter)


class MicroBatcher(Generic[Item, Result]):
    """Feeds one blocking function with batches from many concurrent callers.

    Args:
        run: Takes a list of items and returns as many results, in order. Called in one
            dedicated thread, so that the event loop keeps answering.
        tuning: Batch size and wait; ``reconfigure`` changes them live.
        on_batch: Called in the event loop after each batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        tuning: BatchTuning,
        on_batch: Callable[[BatchRecord], None] = lambda record: None,
    ) -> None:
        """Start idle; the loop starts with the first ``submit``."""
        self._run = run
        self._tuning = tuning
        self._on_batch = on_batch
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._loop: asyncio.Task[None] | None = None

    def reconfigure(self, tuning: BatchTuning) -> None:
        """Use other values from the next batch on."""
        self._tuning = tuning
        self._arrived.set()

    async def submit(self, item: Item, company: int = 1) -> Batched[Result]:
        """Add an item to the next batch and wait for its result.

        Args:
            item: Handed to ``run``.
            company: Items that the caller knows to be on their way, this one included.

        Raises:
            Exception: Whatever ``run`` raised for this item alone.
        """
        if self._loop is None:
            self._loop = asyncio.create_task(self._serve())
        waiting: _Waiting[Item, Result] = _Waiting(item, company, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.future

    async def close(self) -> None:
        """Stop the loop and the thread; items still waiting are cancelled."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        for waiting in self._waiting:
            waiting.future.cancel()
        self._thread.shutdown(wait=True)

    async def _serve(self) -> None:
        while True:
            batch = await self._form()
            start = time.perf_counter()
            results = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._isolate, [waiting.item for waiting in batch]
            )
            model_s = time.perf_counter() - start
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
        """Wait until a batch is worth running and take it from the queue."""
        while True:
            while self._waiting and self._waiting[0].future.done():
                self._waiting.popleft()  # nobody waits for it any more
            if self._waiting:
                # The newest arrival knows best who else is on the way.
                wanted = min(self._tuning.max_batch, self._waiting[-1].company)
                patience = self._waiting[0].since + self._tuning.max_wait_ms / 1000 - time.perf_counter()
                if len(self._waiting) >= wanted or patience <= 0:
                    break
            else:
                patience = None
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), patience)
            except TimeoutError:
                continue
        live: list[_Waiting[Item, Result]] = []
        while self._waiting and len(live) < self._tuning.max_batch:
            waiting = self._waiting.popleft()
            if not waiting.future.done():
                live.append(waiting)
        return live

    def _isolate(self, items: Sequence[Item]) -> list[Result | Exception]:
        """Run a batch; when it raises, run its halves, so that only the culprit fails."""
        try:
            results = list(self._run(items))
            if len(results) != len(items):
                raise RuntimeError(f"{len(items)} items gave {len(results)} results")
        except Exception as error:
            if len(items) == 1:
                return [error]
            half = len(items) // 2
            return self._isolate(items[:half]) + self._isolate(items[half:])
        return list(results)
