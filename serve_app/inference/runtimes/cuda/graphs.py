"""Whole batches on an NVIDIA GPU, from crops to answers, as CUDA graphs recorded before the first request."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from serve_app.inference.head import Head
from serve_app.inference.runtimes.cuda.runtime import CudaRuntime, exact
from serve_app.messages import ClassifyRequest, ClassifyResult

LARGEST = 256  # a larger batch is split
WARM_UPS = 3  # before a graph is recorded: libraries set themselves up
BEST = -1  # in place of a class id: explain the best


def sizes_up_to(batch: int) -> list[int]:
    """The batch sizes to record: a batch is filled up to the next of them.

    >>> sizes_up_to(24)
    [1, 2, 4, 8, 16, 24]
    """
    largest = min(batch, LARGEST)
    return [2**n for n in range(largest.bit_length()) if 2**n < largest] + [largest]


class Stream(Protocol):
    """What a lane needs of CUDA."""

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Host memory that the GPU copies from and to while the CPU goes on."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Run a step, keep it as a graph and return what replays it; shapes and addresses stay."""

    def current(self) -> AbstractContextManager[object]:
        """Make what is called inside run in this stream."""

    def wait(self) -> None:
        """Until all of it is done; the core is free meanwhile."""


class CudaStream:
    """A CUDA stream; its graphs share one pool of memory, for they never run at the same time."""

    def __init__(self) -> None:
        """Make a stream on the current GPU."""
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._pool = torch.cuda.graph_pool_handle()
        # Blocking: a thread that spins while it waits takes a core from the decoders.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # torch leaves it untyped

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See Stream."""
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """See Stream."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                step()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            step()
        with torch.cuda.stream(self._stream):
            graph.replay()  # recording computes nothing, and the next step may read what this one gives
        return graph.replay

    def current(self) -> AbstractContextManager[object]:
        """See Stream."""
        return torch.cuda.stream(self._stream)

    def wait(self) -> None:
        """See Stream."""
        self._done.record(self._stream)
        self._done.synchronize()


class Batch:
    """One batch size of one lane: its buffers, and the graphs recorded over them.

    Places that a smaller batch leaves empty hold an earlier one's images; no answer
    depends on them.

    Attributes:
        run: Computes scores and features of the pixels on the GPU, in the lane's stream.
    """

    def __init__(self, size: int, backbone: CudaRuntime, head: Head, crop_px: int, stream: Stream) -> None:
        """Reserve the buffers and record the graphs."""
        self._backbone, self._head, self._stream = backbone, head, stream
        shape = (size, crop_px, crop_px, 3)
        self._pixels = torch.zeros(shape, dtype=torch.uint8, device=backbone.device)
        self._explained = torch.zeros(size, dtype=torch.int64, device=backbone.device)
        self._features, self._best, self._maps = torch.empty(0), torch.empty(0), torch.empty(0)
        self.run = stream.record(self._classify)
        self._map = stream.record(self._explain)
        self._staged_pixels = stream.pinned(shape, torch.uint8)
        self._staged_explained = stream.pinned((size,), torch.int64)
        self._staged_best = stream.pinned(self._best.shape, torch.float32)
        self._staged_maps = stream.pinned(self._maps.shape, torch.float32)

    def __call__(self, items: Sequence[ClassifyRequest[np.ndarray]]) -> list[ClassifyResult]:
        """Classify at most as many images as it was made for; not for two threads at a time.

        Raises:
            IndexError: A class that there is none of is to be explained; on the GPU it
                would cost every batch that follows.
        """
        n, rows = len(items), 1 + 2 * self._head.k(items)
        wanted = torch.tensor([self._class_id(item) for item in items])
        asked = [i for i, item in enumerate(items) if item.explain is not None]
        np.stack([item.image for item in items], out=self._staged_pixels.numpy()[:n])
        with self._stream.current():
            self._pixels[:n].copy_(self._staged_pixels[:n], non_blocking=True)
            self.run()
            self._staged_best[:rows].copy_(self._best[:rows], non_blocking=True)
            if asked:
                self._staged_explained[:n] = wanted
                self._explained.copy_(self._staged_explained, non_blocking=True)
                self._map()
                self._staged_maps.copy_(self._maps, non_blocking=True)
            self._stream.wait()
        return self._head.results(items, self._staged_best[:rows, :n].numpy(), self._staged_maps.numpy()[asked])

    def _classify(self) -> None:
        self._features = self._backbone.forward(self._pixels)
        self._best = self._head.best(self._features, self._head.classes)

    def _explain(self) -> None:
        best = self._best[2].long()
        self._maps = self._head.maps(self._features, torch.where(self._explained == BEST, best, self._explained))

    def _class_id(self, item: ClassifyRequest[np.ndarray]) -> int:
        if item.explain is None or item.explain == "top":
            return BEST
        if not 0 <= item.explain < self._head.classes:
            raise IndexError(f"class {item.explain} is not one of {self._head.classes}")
        return item.explain


class Lane(NamedTuple):
    """A stream, and what is recorded on it by batch size."""

    stream: Stream
    batches: dict[int, Batch]


class CudaGraphRunner:
    """Batches on one GPU, as many at a time as there are workers: one is copied while the other is computed.

    A lane has its own buffers and graphs; the weights are shared.
    """

    def __init__(
        self,
        backbone: CudaRuntime,
        head: Head,
        crop_px: int,
        stream: Callable[[], Stream] = CudaStream,
        search: bool = True,
    ) -> None:
        """Record the smallest batch, so that it runs; ``warm_up`` records the others.

        Args:
            backbone: On the GPU.
            head: On the GPU.
            crop_px: Side of the crops.
            stream: Makes a lane's stream.
            search: Let cuDNN time its kernels for each batch size and keep the fastest.
        """
        self.backbone, self._head, self._crop_px, self.search = backbone, head, crop_px, search
        self._workers: SimpleQueue[Lane] = SimpleQueue()
        for _ in range(backbone.workers):
            self._workers.put(Lane(stream(), {}))
        self.sizes: list[int] = []
        self._warming = Lock()
        self.warm_up(1)

    def warm_up(self, batch: int) -> None:
        """Record what is missing for batches of up to so many images."""
        self.record(sizes_up_to(batch))

    @torch.inference_mode()
    def record(self, sizes: Iterable[int]) -> None:
        """Record what is missing of these batch sizes; nobody else runs meanwhile."""
        with self._warming, ExitStack() as taken, exact(self.search):
            workers = [taken.enter_context(self.lane()) for _ in range(self.backbone.workers)]
            wanted = sorted({*self.sizes, *sizes})
            for stream, batches in workers:
                for size in sorted({*wanted} - {*batches}, reverse=True):  # the largest makes room for all
                    batches[size] = Batch(size, self.backbone, self._head, self._crop_px, stream)
            self.sizes = wanted

    @torch.inference_mode()
    def __call__(self, items: Sequence[ClassifyRequest[np.ndarray]]) -> list[ClassifyResult]:
        """Classify a batch in the next free lane, in parts if it is larger than the largest recorded."""
        sizes, answers = self.sizes, []
        with self.lane() as lane:
            for start in range(0, len(items), sizes[-1]):
                part = items[start : start + sizes[-1]]
                answers += lane.batches[sizes[bisect_left(sizes, len(part))]](part)
        return answers

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """Have a lane to oneself; waits until one is free."""
        lane = self._workers.get()
        try:
            yield lane
        finally:
            self._workers.put(lane)
