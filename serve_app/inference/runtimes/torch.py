"""PyTorch on a CPU, which runs on every machine."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torchvision.models import ResNet

from serve_app.model_card import ImageTransform


class TorchRuntime:
    """PyTorch with channels-last memory, which needs less memory traffic on a CPU. Runs on every machine.

    Args:
        model: Batch norms folded, on the CPU; its memory layout is changed in place.
        transform: Mean and std of the model.
        threads: Set for the whole process: PyTorch has no other way.
    """

    name, workers = "torch", 1

    def __init__(self, model: ResNet, transform: ImageTransform, threads: int) -> None:
        torch.set_num_threads(threads)
        model.to(memory_format=torch.channels_last)
        self._features = nn.Sequential(*list(model.children())[:-2])
        # Pixels are 0-255; mean and std are defined for 0-1.
        self._mean, self._std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (transform.mean, transform.std))

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """See Runtime."""
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # a view: pixels already are channels-last
        features: np.ndarray = self._features(batch.float().sub_(self._mean).div_(self._std)).numpy()
        return features
