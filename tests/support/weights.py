"""Small weights for tests, published as real ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torchvision.models import resnet18

from serve_app.config import WeightsConfig
from serve_app.inference.card import DEMO, load_card
from serve_app.inference.weights import publish

LABELS = ("ant", "bee", "cow", "dog", "eel", "fox")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def publish_random(
    folder: Path, labels: tuple[str, ...] = LABELS, seed: int = 0, version: str = "random", crop_px: int = 96
) -> WeightsConfig:
    """Publish a ResNet-18 with random weights that takes a 96 px crop of 112 px."""
    torch.manual_seed(seed)
    model = resnet18(num_classes=len(labels))
    with torch.no_grad():
        for module in model.modules():  # a trained network's running statistics are not 0 and 1
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        model.fc.bias.normal_()
    transform = {"resize_px": 112, "crop_px": crop_px, "mean": MEAN, "std": STD}
    card = {"name": "resnet18", "version": version, "labels": labels, "transform": transform}
    digest = publish(model.state_dict(), card, folder).sha256
    return WeightsConfig(source=str(folder / "model.safetensors"), sha256=digest)


def publish_demo(
    folder: Path, version: str, suffix: str = "", bias: float | None = None, **fields: Any
) -> WeightsConfig:
    """Publish the demo model under another version: same predictions, another file.

    Args:
        folder: Where to; one folder per version.
        version: Of the card.
        suffix: Appended to each label, so that a response tells which version gave it.
        bias: Added to all logits, which changes the file and no score; by default it depends on the version.
        fields: Further fields of the card.
    """
    demo = load_card(WeightsConfig(source="demo"))
    labels = tuple(f"{label}{suffix}" for label in demo.labels)
    state = load_file(DEMO)
    state["fc.bias"] = state["fc.bias"] + (len(version) / 1000 if bias is None else bias)
    card = {"name": demo.name, "version": version, "labels": labels, "transform": demo.transform} | fields
    digest = publish(state, card, folder).sha256
    return WeightsConfig(source=str(folder / "model.safetensors"), sha256=digest)
