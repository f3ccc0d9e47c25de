"""Shared by all tests: generated photos and small models. Nothing here needs files from elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from serve_app.config import WeightsConfig
from serve_app.inference.weights import publish
from serve_app.release.serve_config import Config
from tests.support.configs import local
from tests.support.running import Running, start

LABELS = ("ant", "bee", "cow", "dog", "eel", "fox")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_picture(width: int = 320, height: int = 240, seed: int = 0) -> Image.Image:
    """A picture that differs in every direction: color gradients, edges and texture."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x / width, y / height, (x + 2 * y) % 64 / 64], -1)
    base += 0.5 * (((x - width * 0.3) ** 2 + (y - height * 0.6) ** 2) < (min(width, height) * 0.2) ** 2)[..., None]
    blocks = random.random((-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return Image.fromarray((np.clip(0.6 * base + 0.4 * blocks, 0, 1) * 255).astype(np.uint8))


def encode(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """Encode a picture."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def make_photo(seed: int = 0, width: int = 320, height: int = 240) -> bytes:
    """An encoded JPEG."""
    return encode(make_picture(width, height, seed))


def publish_random(
    folder: Path, labels: tuple[str, ...] = LABELS, seed: int = 0, version: str = "random", crop_px: int = 96
) -> WeightsConfig:
    """A ResNet-18 with random weights, published as the real ones are, fed 96 px of 112."""
    torch.manual_seed(seed)
    model = resnet18(num_classes=len(labels))
    with torch.no_grad():
        for module in model.modules():  # as after training: statistics that are not 0 and 1
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        model.fc.bias.normal_()
    transform = {"resize_px": 112, "crop_px": crop_px, "mean": MEAN, "std": STD}
    card = {"name": "resnet18", "version": version, "labels": labels, "transform": transform}
    digest = publish(model.state_dict(), card, folder).sha256
    return WeightsConfig(source=str(folder / "model.safetensors"), sha256=digest)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> WeightsConfig:
    """Random weights on disk."""
    return publish_random(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def config() -> Config:
    """configs/local.yaml."""
    return local()


@pytest.fixture
def photo() -> Callable[..., bytes]:
    """Makes JPEGs."""
    return make_photo


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """The whole service, once for all served and browser tests."""
    with start() as service:
        yield service
