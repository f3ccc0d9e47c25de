"""A CUDA stream without CUDA, so that a machine without a GPU runs the same code around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor


class CpuStream:
    """Does at once what a CUDA stream does in its time; a graph is run again instead of replayed."""

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See serve_app.inference.runtimes.cuda.graphs.Stream."""
        return torch.zeros(shape, dtype=dtype)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """See Stream."""
        step()
        return step

    def current(self) -> nullcontext[None]:
        """See Stream."""
        return nullcontext()

    def wait(self) -> None:
        """See Stream."""
