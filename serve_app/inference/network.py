"""ResNet-18 as NumPy arrays: which weights it has, and its convolutions with folded batch norms. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

Arrays = Mapping[str, np.ndarray]  # weights by torchvision's names: float32, batch norms not folded
CHANNELS = (64, 128, 256, 512)  # of each stage
BLOCKS = 2  # of each stage
STAGES = ("layer1", "layer2", "layer3", "layer4")
EPSILON = np.float32(1e-5)  # added to the variance of a batch norm
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


class Convolution(NamedTuple):
    """A convolution whose padding keeps the side of the feature maps, up to the stride."""

    weight: np.ndarray  # float32, (Co, C, k, k)
    bias: np.ndarray  # float32, (Co,)
    stride: int

    @property
    def window(self) -> int:
        """Side of the window, k."""
        return int(self.weight.shape[-1])

    @property
    def padding(self) -> int:
        """Pixels of zeros on each side."""
        return self.window // 2


class Block(NamedTuple):
    """Two convolutions and the shortcut around them; None passes the input on."""

    conv1: Convolution
    conv2: Convolution
    shortcut: Convolution | None


class Network(NamedTuple):
    """A ResNet-18 up to its last feature map. Batch norms are folded, so a layer is a convolution with a bias."""

    stem: Convolution
    stages: tuple[tuple[Block, ...], ...]


class Layer(NamedTuple):
    """Names of a convolution and its batch norm, and the convolution's shape."""

    conv: str
    norm: str
    shape: tuple[int, int, int, int]
    stride: int


def stem_layer() -> Layer:
    """Return the first layer."""
    return Layer("conv1", "bn1", (CHANNELS[0], 3, 7, 7), 2)


def block_layers(stage: int, block: int) -> tuple[Layer, Layer, Layer | None]:
    """Return the two layers of a block and the layer of its shortcut; None where the shortcut passes its input on."""
    name, channels = f"{STAGES[stage]}.{block}", CHANNELS[stage]
    reduces = stage > 0 and block == 0
    inputs, stride = (CHANNELS[stage - 1], 2) if reduces else (channels, 1)
    first = Layer(f"{name}.conv1", f"{name}.bn1", (channels, inputs, 3, 3), stride)
    second = Layer(f"{name}.conv2", f"{name}.bn2", (channels, channels, 3, 3), 1)
    shortcut = Layer(f"{name}.downsample.0", f"{name}.downsample.1", (channels, inputs, 1, 1), stride)
    return first, second, shortcut if reduces else None


def check_arrays(arrays: Arrays, classes: int) -> None:
    """Raise ValueError, with the name of one array, unless the arrays are those of a ResNet-18 with so many classes.

    PyTorch's counters of batches (``num_batches_tracked``) may be there or not.
    """
    expected: dict[str, tuple[int, ...]] = {"fc.weight": (classes, CHANNELS[-1]), "fc.bias": (classes,)}
    blocks = [block_layers(stage, block) for stage in range(len(STAGES)) for block in range(BLOCKS)]
    for layer in (stem_layer(), *(layer for block in blocks for layer in block)):
        if layer:
            expected[f"{layer.conv}.weight"] = layer.shape
            expected |= {f"{layer.norm}.{part}": layer.shape[:1] for part in NORM_PARTS}
    found = {name: array.shape for name, array in arrays.items() if not name.endswith(".num_batches_tracked")}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise ValueError(f"{name} is missing")
        if name not in expected:
            raise ValueError(f"it has no {name}")
        if found[name] != expected[name]:
            raise ValueError(f"{name} has the shape {found[name]}, expected {expected[name]}")


def fold(arrays: Arrays) -> Network:
    """Merge each batch norm into the convolution before it, which saves a pass over every feature map.

    In eval mode a batch norm is an affine map per channel, so scaling the convolution's weights and shifting its bias
    gives the same result up to float32 rounding (Jacob et al. 2018, arXiv:1712.05877, section 3.2). The order of the
    operations is PyTorch's (``fuse_conv_bn_eval``), and so is every bit.
    """

    def folded(layer: Layer) -> Convolution:
        scale, shift, mean, variance = (arrays[f"{layer.norm}.{part}"] for part in NORM_PARTS)
        inverse = 1 / np.sqrt(variance + EPSILON)
        weight = arrays[f"{layer.conv}.weight"] * (scale * inverse)[:, None, None, None]
        return Convolution(weight, -mean * inverse * scale + shift, layer.stride)

    def block(stage: int, number: int) -> Block:
        first, second, shortcut = block_layers(stage, number)
        return Block(folded(first), folded(second), folded(shortcut) if shortcut else None)

    stages = (tuple(block(stage, number) for number in range(BLOCKS)) for stage in range(len(STAGES)))
    return Network(folded(stem_layer()), tuple(stages))
