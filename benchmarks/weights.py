"""Weights that every system loads, and what plain torchvision makes of them.

ImageNet's weights cannot be downloaded everywhere, and speed does not depend on what a model has
learned. So the default is a seeded random ResNet-18 of ImageNet's size, made so that its answers can
be checked all the same: each of the benchmark's images is the clearest example of a class of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.transforms._presets import ImageClassification
from tqdm import tqdm

from serve_app.inference.torch_model import load_model, publish
from serve_app.inference.weights import spec_of
from serve_app.model_card import ImageTransform

CLASSES = 1000
SEED = 18
# The best logit of an image that is a class of its own.
CLEAR = 10.0
BATCH = 16


def torchvision_transform(transform: ImageTransform) -> ImageClassification:
    """What torchvision's ``weights.transforms()`` is for these sizes."""
    return ImageClassification(
        crop_size=transform.crop_px, resize_size=transform.resize_px, mean=transform.mean, std=transform.std
    )


def choose_weights(text: str | None, images: Sequence[Path], folder: Path) -> Path:
    """A safetensors file with its card: the named weights, or random ones for these images.

    Args:
        text: ``imagenet``, ``demo`` or a safetensors file; random weights if it is None.
        images: Of the benchmark.
        folder: Where to write what is no file yet.
    """
    if text is None:
        return random_weights(images, folder)
    spec = spec_of(text)
    if spec.sha256:
        return Path(text).resolve()
    model, card = load_model(spec)
    publish(model.state_dict(), card.model_dump(exclude={"sha256"}), folder)
    return folder / "model.safetensors"


@torch.no_grad()
def random_weights(images: Sequence[Path], folder: Path) -> Path:
    """A ResNet-18 with seeded random weights and ImageNet's transform.

    The batch norms hold the statistics that they measure on the images, as after training. The last
    layer's first rows are the images' own features, the others point anywhere; its bias centers them.
    """
    torch.manual_seed(SEED)
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    crops = torch.stack([preset(Image.open(path).convert("RGB")) for path in images[:CLASSES]])
    model = resnet18(num_classes=CLASSES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of all batches, equally
            module.weight.uniform_(0.6, 1.4)
            module.bias.normal_(0, 0.1)
    head, model.fc = model.fc, nn.Identity()
    for batch in crops.split(BATCH):
        model(batch)
    model.eval()
    features = torch.cat([model(batch) for batch in crops.split(BATCH)])
    mean = features.mean(0)
    own = nn.functional.normalize(features - mean, dim=1)
    scale = CLEAR / (features - mean).norm(dim=1).median()
    rows = torch.cat([own, nn.functional.normalize(torch.randn(CLASSES - len(own), own.shape[1]), dim=1)])
    head.weight.copy_(rows * scale)
    head.bias.copy_(-head.weight @ mean)
    model.fc = head
    card = {
        "name": "resnet18",
        "version": "benchmark",
        "labels": tuple(f"class {i}" for i in range(CLASSES)),
        "transform": ImageTransform(
            resize_px=preset.resize_size[0], crop_px=preset.crop_size[0], mean=preset.mean, std=preset.std
        ),
        "notes": "Seeded random weights for benchmarks; they know nothing.",
    }
    publish(model.state_dict(), card, folder)
    return folder / "model.safetensors"


@torch.inference_mode()
def reference_top1(weights: Path, images: Sequence[Path]) -> list[int]:
    """The best class of each image by torchvision's own transform and model, eager, float32."""
    model, card = load_model(spec_of(str(weights)))
    transform = torchvision_transform(card.transform)
    return [
        int(model(transform(Image.open(path).convert("RGB"))[None]).argmax())
        for path in tqdm(images, desc="reference answers", leave=False)
    ]
