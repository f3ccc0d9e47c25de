"""The interface that every runtime implements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np


class Runtime(Protocol):
    """Runs a ResNet-18 up to its last feature map; pooling and the last layer are in ``inference.head``.

    Attributes:
        name: Shown in the logs; its first word, which a config may name, also in ``/v1/status``.
        workers: Batches that may run at the same time, each called from its own thread.
    """

    name: str
    workers: int

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Run uint8 pixels (N, H, W, 3), RGB, 0-255; return the last feature map, float32 (N, 512, h, w)."""


RuntimeFactory = Callable[[int], Runtime]  # builds a runtime that uses so many threads
