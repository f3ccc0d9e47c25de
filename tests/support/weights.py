"""Small weights for tests, published as real ones are."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torchvision.models import ResNet, resnet18

from serve_app.config import WeightsConfig
from serve_app.inference.card import load_card, weights_uri
from serve_app.inference.torch_model import publish
from tests.support.photos import make_picture

LABELS = ("ant", "bee", "cow", "dog", "eel", "fox")
TINY_LABELS = ("anchor", "bell", "clock", "drum", "egg", "flag", "gate", "hat", "ink", "jar")
TINY_PX, TINY_VERSION = 96, "tiny-1"
SPREAD = 1.0  # deviation of the tiny model's logits between pictures; at 4, a pixel's rounding changed scores by 0.002
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def publish_random(
    folder: Path,
    labels: tuple[str, ...] = LABELS,
    seed: int = 0,
    version: str = "random",
    crop_px: int = 96,
    resize_px: int = 112,
) -> WeightsConfig:
    """Publish a ResNet-18 with random weights that takes a 96 px crop of 112 px, or other sizes."""
    torch.manual_seed(seed)
    model = _random_model(len(labels))
    torch.nn.init.normal_(model.fc.bias)
    transform = {"resize_px": resize_px, "crop_px": crop_px, "mean": MEAN, "std": STD}
    card = {"name": "resnet18", "version": version, "labels": labels, "transform": transform}
    digest = publish(model.state_dict(), card, folder).sha256
    return WeightsConfig(source=str(folder / "model.safetensors"), sha256=digest)


@cache
def tiny() -> WeightsConfig:
    """Return the model that tests serve: a ResNet-18 of ten classes and 96 px crops, which costs a fifth of the demo's.

    Its weights are random, and its scores are spread: the last layer is scaled by the features of drawn pictures, so
    that different pictures get different classes. No test may depend on which.
    """
    folder = Path(tempfile.mkdtemp(prefix="tiny-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(1)
    model = _random_model(len(TINY_LABELS))
    pictures = [np.asarray(make_picture(TINY_PX, TINY_PX, seed)) for seed in range(32)]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    images = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() - mean) / std
    head, model.fc = model.fc, torch.nn.Identity()
    with torch.inference_mode():
        features = model(images)
        weight = head.weight * SPREAD / (features @ head.weight.T).std(0)[:, None]
        state = model.state_dict() | {"fc.weight": weight, "fc.bias": -(features @ weight.T).mean(0)}
    transform = {"resize_px": TINY_PX, "crop_px": TINY_PX, "mean": MEAN, "std": STD}
    card = {"name": "resnet18", "version": TINY_VERSION, "labels": TINY_LABELS, "transform": transform}
    digest = publish(state, card, folder).sha256
    return WeightsConfig(source=str(folder / "model.safetensors"), sha256=digest)


def publish_copy(
    base: WeightsConfig, folder: Path, version: str, suffix: str = "", bias: float | None = None, **fields: Any
) -> WeightsConfig:
    """Publish weights under another version: same predictions, another file.

    Args:
        base: The weights.
        folder: Where to; one folder per version.
        version: Of the card.
        suffix: Appended to each label, so that a response tells which version gave it.
        bias: Added to all logits, which changes the file and no score; by default it depends on the version.
        fields: Further fields of the card.
    """
    original = load_card(base)
    labels = tuple(f"{label}{suffix}" for label in original.labels)
    state = load_file(weights_uri(base))
    state["fc.bias"] = state["fc.bias"] + (len(version) / 1000 if bias is None else bias)
    card = {"name": original.name, "version": version, "labels": labels, "transform": original.transform} | fields
    digest = publish(state, card, folder).sha256
    return WeightsConfig(source=str(folder / "model.safetensors"), sha256=digest)


def _random_model(classes: int) -> ResNet:
    """Return a ResNet-18 with random weights and running statistics, in eval mode."""
    model = resnet18(num_classes=classes)
    with torch.no_grad():
        for module in model.modules():  # a trained network's running statistics are not 0 and 1
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()
