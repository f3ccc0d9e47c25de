"""Classify batches on an NVIDIA GPU with CUDA graphs, which are recorded before the first request."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from serve_app.inference.head import Head, Requests, copy_features
from serve_app.inference.runtimes.cuda.head import CudaHead, pool
from serve_app.inference.runtimes.cuda.runtime import CudaRuntime, cudnn_without_tf32
from serve_app.messages import ClassifyRequest, ClassifyResult

MAX_GRAPH_BATCH = 256  # a larger batch is split
WARM_UP_RUNS = 3  # before a graph is recorded, so that libraries initialize themselves
TOP_CLASS = -1  # in place of a class id: explain the class with the best score


def graph_batch_sizes(max_batch_size: int) -> list[int]:
    """Return the batch sizes to record; a batch is filled up to the next larger one.

    >>> graph_batch_sizes(24)
    [1, 2, 4, 8, 16, 24]
    """
    largest = min(max_batch_size, MAX_GRAPH_BATCH)
    return [2**n for n in range(largest.bit_length()) if 2**n < largest] + [largest]


class CudaStream:
    """A CUDA stream of the current GPU, whose graphs share one memory pool, because they never run at the same time.

    tests/support/cuda_on_cpu.py implements the same methods without a GPU.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._pool = torch.cuda.graph_pool_handle()
        # Blocking: a thread that spins while it waits takes a core from the decoders.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # torch leaves it untyped

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate page-locked host memory, which the GPU copies asynchronously."""
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Run a step, record it as a graph and return the function that replays it; shapes and addresses stay."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_RUNS):
                step()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            step()
        with torch.cuda.stream(self._stream):
            graph.replay()  # recording computes nothing, and the next step may read this one's results
        return graph.replay

    def current(self) -> AbstractContextManager[object]:
        """Run the calls inside the context in this stream."""
        return torch.cuda.stream(self._stream)

    def wait(self) -> None:
        """Block until the stream has finished, without using the core."""
        self._done.record(self._stream)
        self._done.synchronize()


class BatchGraphs:
    """The buffers and graphs for one batch size in one slot.

    A smaller batch leaves an earlier batch's images in the rest of the buffer. Images of a batch do not influence each
    other, so no result depends on them.

    Attributes:
        run: Computes scores and features of the pixels on the GPU, in the slot's stream.
    """

    def __init__(self, size: int, runtime: CudaRuntime, head: CudaHead, crop_px: int, stream: CudaStream) -> None:
        self._runtime, self._head, self._stream = runtime, head, stream
        shape = (size, crop_px, crop_px, 3)
        self._pixels = torch.zeros(shape, dtype=torch.uint8, device=runtime.device)
        self._explained = torch.zeros(size, dtype=torch.int64, device=runtime.device)
        self._features, self._pooled, self._best, self._maps = (torch.empty(0) for _ in range(4))
        self.run = stream.record(self._classify)
        self._run_maps = stream.record(self._explain)
        self._pinned_pixels = stream.pinned(shape, torch.uint8)
        self._pinned_explained = stream.pinned((size,), torch.int64)
        self._pinned_best = stream.pinned(self._best.shape, torch.float32)
        self._pinned_pooled = stream.pinned(self._pooled.shape, torch.float32)
        self._pinned_maps = stream.pinned(self._maps.shape, torch.float32)

    def __call__(self, items: Requests) -> list[ClassifyResult]:
        """Classify at most ``size`` images; one thread at a time.

        Raises:
            IndexError: The model has no such class to explain. On the GPU, such an index would end the process's use of
                CUDA.
        """
        n, rows = len(items), 1 + 2 * self._head.host.k(items)
        class_ids = torch.tensor([self._class_id(item) for item in items])
        explained = [i for i, item in enumerate(items) if item.explain is not None]
        np.stack([item.image for item in items], out=self._pinned_pixels.numpy()[:n])
        with self._stream.current():
            self._pixels[:n].copy_(self._pinned_pixels[:n], non_blocking=True)
            self.run()
            self._pinned_best[:rows].copy_(self._best[:rows], non_blocking=True)
            if explained:
                self._pinned_explained[:n] = class_ids
                self._explained.copy_(self._pinned_explained, non_blocking=True)
                self._run_maps()
                self._pinned_maps.copy_(self._maps, non_blocking=True)
            if any(item.features == "pooled" for item in items):
                self._pinned_pooled[:n].copy_(self._pooled[:n], non_blocking=True)
            self._stream.wait()
            copies = self._copy_features(items)
        best, maps = self._pinned_best[:rows, :n].numpy(), self._pinned_maps.numpy()[explained]
        return self._head.host.results(items, best, maps, copies)

    def _classify(self) -> None:
        self._features = self._runtime.forward(self._pixels)
        self._pooled = pool(self._features)
        self._best = self._head.best(self._pooled, self._head.host.classes)

    def _explain(self) -> None:
        best = self._best[2].long()
        self._maps = self._head.maps(self._features, torch.where(self._explained == TOP_CLASS, best, self._explained))

    def _copy_features(self, items: Requests) -> dict[int, np.ndarray]:
        """Copy what the items ask for; see head.copy_features. Only the maps that are asked for leave the device."""
        maps = {i: self._features[i].cpu().float().numpy() for i, item in enumerate(items) if item.features == "map"}
        return copy_features(items, maps, self._pinned_pooled.numpy())

    def _class_id(self, item: ClassifyRequest[np.ndarray]) -> int:
        if item.explain is None or item.explain == "top":
            return TOP_CLASS
        if not 0 <= item.explain < self._head.host.classes:
            raise IndexError(f"class {item.explain} is not one of {self._head.host.classes}")
        return item.explain


class GraphSlot(NamedTuple):
    """A stream, and the graphs recorded in it by batch size."""

    stream: CudaStream
    graphs: dict[int, BatchGraphs]


class CudaGraphRunner:
    """Classifies as many batches at the same time as the runtime has workers: one copies while the other computes.

    Each worker takes a slot, which has its own buffers and graphs. The slots share the weights. At first there are only
    graphs for one image. With ``benchmark``, cuDNN times its kernels for each batch size and keeps the fastest.
    """

    def __init__(
        self,
        runtime: CudaRuntime,
        head: Head,
        crop_px: int,
        stream: Callable[[], CudaStream] = CudaStream,
        benchmark: bool = True,
    ) -> None:
        self.runtime, self._crop_px, self.benchmark = runtime, crop_px, benchmark
        self._head = CudaHead(head, runtime.device)
        self._free_slots: SimpleQueue[GraphSlot] = SimpleQueue()
        for _ in range(runtime.workers):
            self._free_slots.put(GraphSlot(stream(), {}))
        self.sizes: list[int] = []
        self._recording = Lock()
        self.warm_up(1)

    def warm_up(self, max_batch_size: int) -> None:
        """Record the missing sizes for batches of up to so many images."""
        self.record(graph_batch_sizes(max_batch_size))

    @torch.inference_mode()
    def record(self, sizes: Iterable[int]) -> None:
        """Record the missing ones of these batch sizes; it takes all slots, so other batches wait."""
        with self._recording, ExitStack() as stack, cudnn_without_tf32(self.benchmark):
            slots = [stack.enter_context(self.slot()) for _ in range(self.runtime.workers)]
            all_sizes = sorted({*self.sizes, *sizes})
            for stream, graphs in slots:
                for size in sorted({*all_sizes} - {*graphs}, reverse=True):  # the largest sizes the memory pool
                    graphs[size] = BatchGraphs(size, self.runtime, self._head, self._crop_px, stream)
            self.sizes = all_sizes

    @torch.inference_mode()
    def __call__(self, items: Requests) -> list[ClassifyResult]:
        """Classify a batch in the next free slot, in parts if it is larger than the largest recorded size."""
        sizes, answers = self.sizes, []
        with self.slot() as slot:
            for start in range(0, len(items), sizes[-1]):
                part = items[start : start + sizes[-1]]
                answers += slot.graphs[sizes[bisect_left(sizes, len(part))]](part)
        return answers

    @contextmanager
    def slot(self) -> Iterator[GraphSlot]:
        """Take a slot for the duration of the context; waits until one is free."""
        slot = self._free_slots.get()
        try:
            yield slot
        finally:
            self._free_slots.put(slot)
