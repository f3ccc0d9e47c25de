"""The interface that every runtime implements: uint8 pixels in, the last feature map out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")


class Runtime(Protocol):
    """Everything of a ResNet-18 but its pooling and last layer.

    Attributes:
        name: Of the runtime.
        device: Where the features are.
        workers: How many batches it takes at a time, each from a thread of its own.
    """

    name: str
    device: torch.device
    workers: int

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Run a batch.

        Args:
            pixels: uint8, (N, H, W, 3), RGB, 0-255.

        Returns:
            The last feature map: float32, (N, 512, h, w).
        """
