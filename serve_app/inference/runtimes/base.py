"""The interface that every runtime implements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")


class Runtime(Protocol):
    """Runs a ResNet-18 up to its last feature map; pooling and the last layer are in ``inference.head``.

    Attributes:
        name: Shown in ``/v1/status`` and in the logs.
        device: Device of the features.
        workers: Batches that may run at the same time, each called from its own thread.
    """

    name: str
    device: torch.device
    workers: int

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Run uint8 pixels (N, H, W, 3), RGB, 0-255; return the last feature map, float32 (N, 512, h, w)."""


RuntimeFactory = Callable[[int], Runtime]  # builds a runtime that uses so many threads
