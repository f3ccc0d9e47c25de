"""The least time of a forward pass on a GPU, by its arithmetic and by the bytes that it moves.

Source: the roofline model, Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet18

HALF_BYTES, PIXEL_BYTES = 2, 1  # of an activation; of one channel of a pixel


@dataclass(frozen=True)
class Layer:
    """One kernel of the engine, for one image.

    Attributes:
        name: Of the module.
        macs: Multiply-adds.
        moved: Bytes of activations, read and written.
        weights: Bytes of weights, read once per batch.
    """

    name: str
    macs: int
    moved: int
    weights: int


def layers(crop_px: int = 224, classes: int = 1000) -> list[Layer]:
    """List the kernels in fp16, with every activation read once and written once.

    Bias, ReLU and the sum with the shortcut are part of the convolution, so only reading the
    shortcut counts.
    """
    found: list[Layer] = []
    with torch.device("meta"):  # shapes without numbers
        model = resnet18(num_classes=classes).eval()
        picture = torch.empty(1, 3, crop_px, crop_px)
    found.append(Layer("normalize", 0, picture.numel() * (PIXEL_BYTES + HALF_BYTES), 0))

    def note(name: str, module: nn.Module, given: Any, out: torch.Tensor) -> None:
        x = given[0]
        if isinstance(module, nn.Conv2d):
            side = module.kernel_size[0] * module.kernel_size[1]
            joined = out.numel() if name.endswith("conv2") else 0
            moved = (x.numel() + out.numel() + joined) * HALF_BYTES
            found.append(
                Layer(name, out.numel() * module.in_channels * side, moved, module.weight.numel() * HALF_BYTES)
            )
        elif isinstance(module, nn.MaxPool2d):
            found.append(Layer(name, 0, (x.numel() + out.numel()) * HALF_BYTES, 0))
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            found.append(Layer(name, 0, x.numel() * HALF_BYTES, 0))
        elif isinstance(module, nn.Linear):
            found.append(Layer(name, module.weight.numel(), 0, module.weight.numel() * 4))

    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, x, y, name=name: note(name, m, x, y))
    model(picture)
    return found


def limits(batch: int, flops: float, bytes_s: float, crop_px: int = 224, classes: int = 1000) -> dict[str, float]:
    """Compute the least time of one forward pass.

    Args:
        batch: Images in the batch.
        flops: Measured rate of large matrix products: operations per second.
        bytes_s: Measured rate of large copies on the device: bytes read and written per second.
        crop_px: Side of the crops.
        classes: Classes of the model.

    Returns:
        Milliseconds for the arithmetic alone, for the bytes alone, and for the slower of the
        two in every layer.
    """
    kernels = layers(crop_px, classes)
    arithmetic = [2 * each.macs * batch / flops for each in kernels]
    memory = [(each.moved * batch + each.weights) / bytes_s for each in kernels]
    each_slower = sum(max(a, m) for a, m in zip(arithmetic, memory, strict=True))
    return {
        "arithmetic_ms": sum(arithmetic) * 1000,
        "memory_ms": sum(memory) * 1000,
        "layer_by_layer_ms": each_slower * 1000,
    }


def summary() -> dict[str, float]:
    """Sum up the arithmetic and the bytes of one image of 224 px, with ImageNet's classes."""
    kernels = layers()
    return {
        "gmacs_per_image": sum(each.macs for each in kernels) / 1e9,
        "gflop_per_image": 2 * sum(each.macs for each in kernels) / 1e9,
        "megabytes_moved_per_image": sum(each.moved for each in kernels) / 1e6,
        "megabytes_of_weights": sum(each.weights for each in kernels) / 1e6,
        "kernels": len(kernels),
    }
