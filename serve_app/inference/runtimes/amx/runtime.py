"""Run a batch with the convolutions of kernels.py: pack the weights, lay out the feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from serve_app.inference.network import Network
from serve_app.inference.runtimes.amx import kernels
from serve_app.inference.runtimes.amx.tiles import (
    ADD,
    BFLOAT16,
    DEPTH,
    FLOAT32,
    FLOATS,
    PANEL,
    REPLACE,
    ROW_BYTES,
    TILE_ROWS,
    permit,
)
from serve_app.inference.runtimes.compiled.plan import (
    EVERY_MAPS,
    CompiledRuntime,
    Layer,
    Maps,
    aligned_copy,
    aligned_zeros,
    list_layers,
    map_images,
    map_sides,
    row_normalization,
)
from serve_app.inference.runtimes.compiled.stem import BORDER
from serve_app.model_card import ImageTransform

STEM_CHANNELS = 64
RowTile = tuple[int, int, int]  # see ``Plan``


class PackedNetwork:
    """The weights of a network in the layout of the kernels, for any number of runtimes. 45 MB; in bfloat16 22 MB.

    Args:
        network: Its convolutions.
        transform: Of the images.
        bfloat16: Multiply in bfloat16 instead of float32. Sums and shortcuts stay float32.

    Raises:
        ImportError: This CPU has no AMX, or the system does not permit it.
    """

    def __init__(self, network: Network, transform: ImageTransform, bfloat16: bool = False) -> None:
        permit()
        self.halves = BFLOAT16 if bfloat16 else FLOAT32
        self.crop_px = transform.crop_px
        self.normalization = row_normalization(transform)
        self.layers = list_layers(network)
        self.weights = [_pack(layer, self.halves) for layer in self.layers]
        self.biases = [aligned_copy(layer.conv.bias) for layer in self.layers]


class FeatureMaps(NamedTuple):
    """Feature maps of all images of a pass, PANEL channels at a time: their high halves, then their low halves.

    One pixel of zeros follows each row, and one row of zeros each image. They are the border on all sides.
    """

    halves: np.ndarray  # uint16, (C / PANEL, 2, pixels, PANEL)
    side: int
    images: int

    @property
    def low(self) -> int:
        """Distance of the low halves from the high ones in bytes."""
        return self.halves.strides[1]

    @property
    def step(self) -> int:
        """Distance of the next PANEL channels in bytes."""
        return self.halves.strides[0]

    @property
    def row(self) -> int:
        """Distance of two rows in bytes."""
        return (self.side + 1) * ROW_BYTES

    @property
    def image(self) -> int:
        """Distance of two images in bytes; zero if all use the same maps."""
        return (self.side + 1) * self.row if self.images > 1 else 0

    @property
    def start(self) -> int:
        """Address of the first pixel of the first image, which a border precedes."""
        return int(self.halves.ctypes.data) + self.row + ROW_BYTES


class AmxRuntime(CompiledRuntime):
    """Runs a packed network on some threads, with feature maps of its own, 13 MB at 224 px."""

    def __init__(self, network: PackedNetwork, threads: int) -> None:
        self.name = "amx bf16" if network.halves == BFLOAT16 else "amx"
        super().__init__(network.layers, network.crop_px, threads)
        self._network = network  # its arrays are used by their addresses
        crop_px, stem_side = network.crop_px, math.ceil(network.crop_px / 2)
        sides = map_sides(crop_px)
        self._maps = {place: _feature_maps(place, sides[place[0]]) for place in EVERY_MAPS}
        self._scratch = [_scratch(crop_px, stem_side) for _ in range(threads)]
        shapes = np.zeros(64, np.uint8)  # of LDTILECFG: palette 1; bytes in a row and rows of each of eight tiles
        shapes[0], shapes[16:32], shapes[48:56] = 1, np.array([ROW_BYTES] * 8, np.uint16).view(np.uint8), TILE_ROWS
        self._plan = kernels.Plan(shapes, *self._tables(stem_side), network.normalization, network.halves, sides[0])
        self(np.zeros((1, crop_px, crop_px, 3), np.uint8))  # compiles the kernels if none are cached

    def _forward(self, pixels: np.ndarray, features: np.ndarray) -> None:
        def run(thread: int) -> None:
            schedule, counter = self._schedules[len(pixels)], self._barrier_counter
            kernels.run(pixels, schedule, self._plan, self._scratch[thread], thread, self._threads, counter, features)

        self._on_threads(run)

    def _tables(self, stem_side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the convolutions, the row tiles and the taps of ``Plan``."""
        convolutions: list[tuple[int, ...]] = []
        row_tiles: list[RowTile] = []
        taps: list[int] = []
        for layer, weight, bias in zip(self._network.layers, self._network.weights, self._network.biases, strict=True):
            row = {"weight": weight.ctypes.data, "bias": bias.ctypes.data, "panels": len(weight), "relu": layer.relu}
            row |= {"first_tap": len(taps), "first_row_tile": len(row_tiles)}
            if convolutions:
                x, y, conv = self._maps[layer.source], self._maps[layer.target], layer.conv
                row |= {"x": x.start, "x_image": x.image, "x_window": conv.stride * ROW_BYTES, "x_low": x.low}
                row |= {"x_step": x.step, "steps": len(x.halves), "result": ADD if layer.add else REPLACE}
                row |= {"y": y.start, "y_image": y.image, "y_row": y.row, "y_pixel": ROW_BYTES, "y_low": y.low}
                row |= {"y_step": y.step}
                reach = range(-conv.padding, conv.padding + 1)
                taps += [dy * x.row + dx * ROW_BYTES for dy in reach for dx in reach]
                row_tiles += _map_tiles(x, y, conv.stride)
            else:  # the stem reads the image and writes float32 rows, which are pooled
                image, ring = self._scratch[0].image.strides, self._scratch[0].ring.strides
                window = layer.conv.stride * kernels.PIXEL_BYTES
                row |= {"x_window": window, "x_low": image[0], "steps": 1, "result": FLOATS}
                row |= {"y_pixel": ring[2], "y_step": ring[1]}
                taps += [dy * image[1] for dy in range(layer.conv.window)]
                row_tiles += _row_tiles([True] * stem_side, window, ring[2])
            row |= {"taps": len(taps) - row["first_tap"], "row_tiles": len(row_tiles) - row["first_row_tile"]}
            convolutions.append(tuple(row.get(name, 0) for name in kernels.FIELDS))
        tables = np.array(convolutions, kernels.CONVOLUTION), np.array(row_tiles, np.int64), np.array(taps, np.int64)
        return tables


def _scratch(crop_px: int, stem_side: int) -> kernels.Scratch:
    padded = crop_px + 2 * BORDER
    # A row of the image is longer than its pixels: vectors end there, and a row tile reads 2 TILE_ROWS windows.
    image_row = DEPTH * math.ceil((3 * (padded + 2 * 2 * TILE_ROWS) + DEPTH) / DEPTH)
    return kernels.Scratch(
        row=aligned_zeros((TILE_ROWS * math.ceil(3 * crop_px / TILE_ROWS),)),
        image=aligned_zeros((2, padded, image_row), np.uint16),
        ring=aligned_zeros((3, STEM_CHANNELS // PANEL, stem_side + 2, PANEL)),
        sums=aligned_zeros((2, 2 * TILE_ROWS, PANEL)),
    )


def _feature_maps(place: Maps, side: int) -> FeatureMaps:
    """Allocate feature maps of zeros; a row tile may begin at any pixel and read 2 TILE_ROWS pixels."""
    border = side + 2
    pixels = border + map_images(place) * (side + 1) ** 2 + border + 2 * TILE_ROWS
    halves = aligned_zeros(((64 << place[0]) // PANEL, 2, pixels, PANEL), np.uint16)
    return FeatureMaps(halves, side, map_images(place))


def _map_tiles(x: FeatureMaps, y: FeatureMaps, stride: int) -> list[RowTile]:
    """List the row tiles of one image.

    With a stride of 1, windows are one pixel from each other across the ends of rows too. The rows of a tile then run
    over the border, and what is computed there is dropped. Else each row of pixels has tiles of its own.
    """
    inside = [True] * y.side
    if stride == 1:
        return _row_tiles([*inside, False] * y.side, ROW_BYTES, ROW_BYTES)
    return [
        (stride * row * x.row + begin_x, row * y.row + begin_y, outputs)
        for row in range(y.side)
        for begin_x, begin_y, outputs in _row_tiles(inside, stride * ROW_BYTES, ROW_BYTES)
    ]


def _row_tiles(outputs: Sequence[bool], x_window: int, y_pixel: int) -> list[RowTile]:
    """List the row tiles of windows at the same distance, each of which is an output or not."""
    return [
        (begin * x_window, begin * y_pixel, sum(bit << i for i, bit in enumerate(outputs[begin : begin + TILE_ROWS])))
        for begin in range(0, len(outputs), TILE_ROWS)
    ]


def _pack(layer: Layer, halves: int) -> np.ndarray:
    """Pack weights (Co, C, k, k) as (panel, step, tap, half, tile, 16 pairs of inputs, 16 outputs, 2 of a pair).

    A tap of the stem is a whole row of its window, filled up with zeros.
    """
    weight = layer.conv.weight
    outputs, inputs, window = weight.shape[:3]
    by_tap = weight.transpose(2, 3, 1, 0).reshape(window * window, inputs, outputs)
    if inputs < DEPTH:
        by_tap = by_tap.reshape(window, window * inputs, outputs)
        by_tap = np.pad(by_tap, ((0, 0), (0, DEPTH - window * inputs), (0, 0)))
    tiles = by_tap.reshape(len(by_tap), -1, DEPTH // 2, 2, outputs // PANEL, 2, PANEL // 2)
    tiles = tiles.transpose(4, 1, 0, 5, 2, 6, 3)
    packed = [_to_half(tiles)]
    if halves == FLOAT32:
        packed.append(_to_half(tiles - _to_float(packed[0])))
    return aligned_copy(np.stack(packed, 3))


def _to_half(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, as uint16."""
    return ((np.ascontiguousarray(values).view(np.uint32) + np.uint32(0x8000)) >> 16).astype(np.uint16)


def _to_float(halves: np.ndarray) -> np.ndarray:
    return (halves.astype(np.uint32) << 16).view(np.float32)
