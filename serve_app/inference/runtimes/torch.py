"""PyTorch on a CPU: the reference that every other runtime is compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from serve_app.inference.runtimes.base import CPU
from serve_app.model_card import ImageTransform


class TorchRuntime:
    """PyTorch in channels-last memory, which saves a CPU memory traffic. Runs everywhere."""

    name, device, workers = "torch", CPU, 1

    def __init__(self, model: ResNet, transform: ImageTransform, threads: int) -> None:
        """Prepare a folded model; its memory layout is changed in place. The threads are the whole process's."""
        torch.set_num_threads(threads)
        model.to(memory_format=torch.channels_last)
        self._features = nn.Sequential(*list(model.children())[:-2])
        # Pixels arrive as 0-255, mean and std are meant for 0-1.
        self._mean, self._std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (transform.mean, transform.std))

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """See Runtime."""
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # channels-last already: nothing moves
        features: Tensor = self._features(batch.float().sub_(self._mean).div_(self._std))
        return features
