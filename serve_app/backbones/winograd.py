"""A ResNet-18's 3 x 3 convolutions with a quarter of the multiplications, in operators of plain ONNX.

Winograd's F(4 x 4, 3 x 3) (Lavin and Gray 2015, arXiv:1509.09308) makes a tile of 4 x 4 outputs from a patch of 6 x 6
inputs: a linear map of the patch, one product of matrices for each of its 36 elements, another linear map. All three
are matrix products here, which ONNX Runtime computes near the peak of the CPU's vector units, whatever their width. It
takes a stride of 1; the other convolutions, seven of twenty, stay as they are.

From the first to the last of such convolutions with the same side a feature map is kept *in tiles*: (17 t, N, C) for t
tiles, where rows 0 to t - 1 are the first pixel of each tile, the next t the second, and the last t are zeros, which
stand for all that lies outside the image. Sums and ReLU do not mind the order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from serve_app.backbones.cpu import OnnxRuntimeBackbone
from serve_app.backbones.graph import Writer, parameters
from serve_app.schemas import ImageTransform

if TYPE_CHECKING:
    import onnx

TILE, PATCH = 4, 6
INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    float,
)
FILTER = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], float) / 24
OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float)
Row = Callable[[int, int], int]  # where the pixel (y, x) is, inside the image or not


class WinogradBackbone(OnnxRuntimeBackbone):
    """ONNX Runtime with such a graph: the fastest where the CPU computes 512 bits at a time."""

    name = "winograd"


def to_onnx(model: ResNet, transform: ImageTransform) -> onnx.ModelProto:
    """Write a model as ``graph.to_onnx`` does, for crops of the transform's size only.

    Args:
        model: Batch norms folded into the convolutions, on the CPU.
        transform: Its mean, std and crop size.
    """
    return TiledWriter(transform).write(model)


class Tiles:
    """Which row holds which pixel.

    Attributes:
        count: Of the tiles.
    """

    def __init__(self, side: int) -> None:
        """Cover a square feature map of so many pixels a side."""
        self._side, self._across = side, math.ceil(side / TILE)
        self.count = self._across**2

    def flat_row(self, y: int, x: int) -> int:
        """Row of a pixel in (side * side + 1, N, C), whose last row is zero."""
        return y * self._side + x if self._inside(y, x) else self._side**2

    def row(self, y: int, x: int) -> int:
        """Row of a pixel in tiles."""
        if not self._inside(y, x):
            return TILE * TILE * self.count
        return (y % TILE * TILE + x % TILE) * self.count + y // TILE * self._across + x // TILE

    def patches(self, row: Row) -> np.ndarray:
        """Rows of the first pixel of each tile's patch, then of the second, and so on: int64, (36 t)."""
        return self._gather(range(-1, PATCH - 1), row)

    def tiles(self, row: Row) -> np.ndarray:
        """Rows that make a feature map in tiles: int64, (17 t)."""
        return np.concatenate([self._gather(range(TILE), row), np.full(self.count, row(-1, -1))])

    def pixels(self) -> np.ndarray:
        """Rows that make the image of a feature map in tiles: int64, (side * side)."""
        return np.array([self.row(y, x) for y in range(self._side) for x in range(self._side)])

    def _gather(self, offsets: range, row: Row) -> np.ndarray:
        corners = range(0, self._across * TILE, TILE)
        return np.array([row(y + dy, x + dx) for dy in offsets for dx in offsets for y in corners for x in corners])

    def _inside(self, y: int, x: int) -> bool:
        return 0 <= y < self._side and 0 <= x < self._side


class TiledWriter(Writer):
    """Writes a graph whose feature maps are in tiles within each stage."""

    def __init__(self, transform: ImageTransform) -> None:
        """The sides of the feature maps follow from the crop's."""
        super().__init__(transform)
        self._side = math.ceil(math.ceil(transform.crop_px / 2) / 2)  # after the stem and the pooling
        self.constant("winograd.input", np.kron(INPUT, INPUT).astype(np.float32))
        zeros = np.zeros((1, PATCH * PATCH))
        self.constant("winograd.output", np.vstack([np.kron(OUTPUT, OUTPUT), zeros]).astype(np.float32))

    def stage(self, stage: nn.Sequential, x: str, name: str, out: str) -> str:
        """See Writer: in and out are images, (N, C, H, W); between them are tiles."""
        first, *others = (block for block in stage if isinstance(block, BasicBlock))
        self._side = math.ceil(self._side / first.stride)
        tiles = Tiles(self._side)
        x = self._enter(tiles, first, x, f"{name}.0")
        for number, block in enumerate(others, 1):
            x = self._within(tiles, block, x, f"{name}.{number}")
        return self._image(tiles, x, first.conv2.out_channels, out)

    def _enter(self, tiles: Tiles, block: BasicBlock, x: str, name: str) -> str:
        """The first block of a stage: an image -> tiles."""
        channels, flat = block.conv2.out_channels, f"{name}.flat"
        if block.downsample is None:
            around = self._flat(x, channels, flat)
            y = self._winograd(tiles, block.conv1, around, tiles.flat_row, f"{name}.conv1")
            y = self._winograd(tiles, block.conv2, self.op("Relu", [y], f"{y}.relu"), tiles.row, f"{name}.conv2")
        else:
            shortcut = self.convolution(block.downsample[0], x, f"{name}.shortcut")
            around = self._flat(shortcut, channels, f"{shortcut}.flat")
            y = self._flat(self.convolution(block.conv1, x, f"{name}.conv1", relu=True), channels, flat)
            y = self._winograd(tiles, block.conv2, y, tiles.flat_row, f"{name}.conv2")
        around = self._gather(around, tiles.tiles(tiles.flat_row), f"{name}.around")
        return self.add(y, around, name, f"{name}.tiles")

    def _within(self, tiles: Tiles, block: BasicBlock, x: str, name: str) -> str:
        """Another block: tiles -> tiles."""
        y = self._winograd(tiles, block.conv1, x, tiles.row, f"{name}.conv1")
        y = self._winograd(tiles, block.conv2, self.op("Relu", [y], f"{y}.relu"), tiles.row, f"{name}.conv2")
        return self.add(y, x, name, f"{name}.tiles")

    def _winograd(self, tiles: Tiles, conv: nn.Conv2d, x: str, row: Row, name: str) -> str:
        """A convolution of stride 1 on a feature map whose pixels are in these rows; its result is in tiles."""
        weight, bias = parameters(conv)
        filters = np.kron(FILTER, FILTER) @ weight.reshape(-1, 9).T.astype(float)
        filters = filters.astype(np.float32).reshape(PATCH * PATCH, conv.out_channels, conv.in_channels)
        biases = np.zeros((TILE * TILE + 1, 1, conv.out_channels), np.float32)
        biases[: TILE * TILE] = bias
        patches = self._gather(x, tiles.patches(row), f"{name}.patches")
        patches = self._reshape(patches, (PATCH * PATCH, -1), f"{name}.flat-patches")
        mapped = self.op("MatMul", ["winograd.input", patches], f"{name}.mapped")
        mapped = self._reshape(mapped, (PATCH * PATCH, -1, conv.in_channels), f"{name}.rows")
        # Apart: ONNX Runtime lays a weight out once, at load, if it is a matrix, and at each run if it is a stack.
        apart = self.node("Split", [mapped], [f"{name}.rows.{number}" for number in range(PATCH * PATCH)], axis=0)
        products = [
            self.op("MatMul", [rows, self.constant(f"{rows}.weight", each.T)], f"{rows}.product")
            for rows, each in zip(apart, filters, strict=True)
        ]
        product = self.op("Concat", products, f"{name}.products", axis=0)
        product = self._reshape(product, (PATCH * PATCH, -1), f"{name}.flat-products")
        y = self.op("MatMul", ["winograd.output", product], f"{name}.tiles")
        y = self._reshape(y, (TILE * TILE + 1, -1, conv.out_channels), f"{name}.unbiased")
        y = self.op("Add", [y, self.constant(f"{name}.bias", biases)], f"{name}.biased")
        return self._reshape(y, ((TILE * TILE + 1) * tiles.count, -1, conv.out_channels), name)

    def _flat(self, image: str, channels: int, name: str) -> str:
        """Image (N, C, H, W) -> (H W + 1, N, C), the last row zero."""
        turned = self.op("Transpose", [image], f"{name}.turned", perm=[2, 3, 0, 1])
        rows = self._reshape(turned, (self._side**2, -1, channels), f"{name}.rows")
        return self.op("Pad", [rows, self.constant(f"{name}.pads", np.array([0, 0, 0, 1, 0, 0]))], name)

    def _image(self, tiles: Tiles, x: str, channels: int, out: str) -> str:
        """Tiles -> image (N, C, H, W)."""
        rows = self._gather(x, tiles.pixels(), f"{out}.rows")
        rows = self._reshape(rows, (self._side, self._side, -1, channels), f"{out}.turned")
        return self.op("Transpose", [rows], out, perm=[2, 3, 0, 1])

    def _gather(self, x: str, rows: np.ndarray, name: str) -> str:
        return self.op("Gather", [x, self.constant(f"{name}.at", rows)], name, axis=0)

    def _reshape(self, x: str, shape: tuple[int, ...], name: str) -> str:
        return self.op("Reshape", [x, self.constant(f"{name}.shape", np.array(shape))], name)
