"""The GPU runtime on a CPU, so that a machine without a GPU tests the code around CUDA."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from serve_app.config import WeightsConfig
from serve_app.inference.runtimes.cuda.runtime import CudaRuntime
from serve_app.inference.runtimes.folding import fold
from serve_app.inference.torch_model import load_model

CPU = torch.device("cpu")


def cuda_runtime_on_cpu(
    weights: WeightsConfig, dtype: torch.dtype = torch.float32, fused: Collection[str] = ()
) -> CudaRuntime:
    """Load weights into a CudaRuntime on the CPU; by default it uses no kernel that only GPUs have."""
    model, card = load_model(weights)
    return CudaRuntime(fold(model), card.transform, dtype, CPU, fused)


class CpuStream:
    """Replaces serve_app.inference.runtimes.cuda.graphs.CudaStream: every call runs at once, on the CPU."""

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate ordinary memory."""
        return torch.zeros(shape, dtype=dtype)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Run a step; replaying it runs it again."""
        step()
        return step

    def current(self) -> nullcontext[None]:
        """Change nothing."""
        return nullcontext()

    def wait(self) -> None:
        """Return at once: every step has already run."""
