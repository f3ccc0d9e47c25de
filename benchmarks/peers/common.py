"""What all peers share: the weights, torchvision's transform, the folded model and the form of an answer."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models import ResNet

from benchmarks.weights import torchvision_transform
from serve_app.inference.torch_model import load_model
from serve_app.inference.weights import spec_of
from serve_app.messages import ClassifyResult
from serve_app.model_card import ModelCard
from serve_app.preprocessing.transform import preprocess

WEIGHTS = "BENCHMARK_WEIGHTS"
TOP_K = 10
MAX_PIXELS = 50_000_000


def port_from_command_line() -> int:
    """Read ``PORT WEIGHTS``; the weights go where worker processes find them too."""
    port, weights = sys.argv[1:3]
    os.environ[WEIGHTS] = str(Path(weights).resolve())
    return int(port)


def weights_file() -> Path:
    """The weights that the command line named."""
    return Path(os.environ[WEIGHTS])


def load(weights: str | None = None) -> tuple[ResNet, ModelCard]:
    """The plain eager model and its card."""
    return load_model(spec_of(weights or os.environ[WEIGHTS]))


class Transform:
    """torchvision's own: encoded bytes -> float32 (3, H, W), as ``weights.transforms()`` makes it."""

    def __init__(self, card: ModelCard) -> None:
        """Take sizes, mean and deviation from the weights."""
        self._transform = torchvision_transform(card.transform)

    def __call__(self, encoded: bytes) -> Tensor:
        """Decode and transform one image."""
        return self._transform(Image.open(io.BytesIO(encoded)).convert("RGB"))


def answer(logits: Tensor, card: ModelCard) -> dict[str, Any]:
    """The ten best classes of one image."""
    scores, ids = logits.softmax(-1).topk(min(TOP_K, len(card.labels)))
    pairs = zip(ids.tolist(), scores.tolist(), strict=True)
    return {"predictions": [{"class_id": i, "label": card.labels[i], "score": score} for i, score in pairs]}


def answer_of(result: ClassifyResult) -> dict[str, Any]:
    """The same, from a result of our own engine."""
    rows = zip(result.class_ids, result.labels, result.scores, strict=True)
    return {"predictions": [{"class_id": i, "label": label, "score": score} for i, label, score in rows]}


class Folded(nn.Module):
    """The quick model of the opponents that are tuned: batch norms folded, channels last, uint8 in."""

    def __init__(self, threads: int) -> None:
        """Load the weights.

        Args:
            threads: That torch may use in this process.
        """
        super().__init__()
        torch.set_num_threads(threads)
        model, self.card = load()
        self._model: nn.Module = fuse(model).to(memory_format=torch.channels_last)
        self._mean = (torch.tensor(self.card.transform.mean) * 255).view(1, 3, 1, 1)
        self._std = (torch.tensor(self.card.transform.std) * 255).view(1, 3, 1, 1)

    def crop(self, encoded: bytes) -> np.ndarray:
        """Decode and crop one image, as our own service does it: uint8 (H, W, 3)."""
        return preprocess(encoded, self.card.transform, MAX_PIXELS).pixels

    @torch.inference_mode()
    def logits(self, crops: list[np.ndarray]) -> Tensor:
        """Run a batch."""
        result: Tensor = self(torch.from_numpy(np.stack(crops)))
        return result

    def forward(self, crops: Tensor) -> Tensor:
        """Return the logits, float32 (n, C), of uint8 crops (n, H, W, 3)."""
        pixels = crops.permute(0, 3, 1, 2)  # channels last as it is
        result: Tensor = self._model(pixels.float().sub_(self._mean).div_(self._std))
        return result
