"""Run a batch with the convolutions of kernels.py: pack the weights, lay out the feature maps."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from serve_app.inference.network import Network
from serve_app.inference.runtimes.compiled.plan import (
    EVERY_MAPS,
    LAST_MAPS,
    CompiledRuntime,
    Layer,
    aligned_copy,
    aligned_zeros,
    list_layers,
    map_images,
    map_sides,
    row_normalization,
)
from serve_app.inference.runtimes.winograd import kernels
from serve_app.inference.runtimes.winograd.packing import COLUMN_NORM, FLOAT32, INT16, ROW_NORM
from serve_app.inference.runtimes.winograd.product import PANEL
from serve_app.inference.runtimes.winograd.transforms import INPUT_TILE, OUTPUT_TILE, filter_transform
from serve_app.model_card import ImageTransform


class PackedLayer(NamedTuple):
    """A layer, how it is computed, and its weights in the layout of the kernels."""

    layer: Layer
    kind: int
    weight: np.ndarray
    scales: np.ndarray  # of the columns, float32, (n, Co / PANEL, PANEL); for int16 only
    bias: np.ndarray


class PackedNetwork:
    """The weights of a network in the layout of the kernels, for any number of runtimes. 160 MB; in int16 80 MB.

    Args:
        network: Its convolutions.
        transform: Of the images.
        int16: Multiply in int16 instead of float32. Feature maps and transforms stay float32.

    Raises:
        ImportError: This CPU has neither AVX2 nor AVX-512.
    """

    def __init__(self, network: Network, transform: ImageTransform, int16: bool = False) -> None:
        if not kernels.SUPPORTED:
            raise ImportError("this CPU has neither AVX2 nor AVX-512")
        self.packing = INT16 if int16 else FLOAT32
        self.crop_px = transform.crop_px
        self.normalization = row_normalization(transform)
        if int16:
            self.normalization *= ROW_NORM / _stem_norm(transform)
        self.layers = [_pack_layer(layer, self.packing, transform) for layer in list_layers(network)]


class WinogradRuntime(CompiledRuntime):
    """Runs a packed network on some threads, with feature maps of its own, 20 MB at 224 px."""

    def __init__(self, network: PackedNetwork, threads: int) -> None:
        self.name = "winograd int16" if network.packing == INT16 else "winograd"
        super().__init__([packed.layer for packed in network.layers], network.crop_px, threads)
        self._network = network
        self._sides = map_sides(network.crop_px)
        # A width of whole tiles, and a border of zeros.
        widths = [OUTPUT_TILE * math.ceil(side / OUTPUT_TILE) + 2 for side in self._sides]
        self._maps = {
            (stage, name): aligned_zeros((map_images((stage, name)), widths[stage], widths[stage], 64 << stage))
            for stage, name in EVERY_MAPS
        }
        self._convolutions = self._convolution_table()
        self._scratch = [self._new_scratch() for _ in range(threads)]
        self(np.zeros((1, network.crop_px, network.crop_px, 3), np.uint8))  # compiles the kernels if none are cached

    def _forward(self, pixels: np.ndarray, features: np.ndarray) -> None:
        plan = (self._convolutions, self._schedules[len(pixels)], self._network.normalization)

        def run(thread: int) -> None:
            kernels.run(pixels, *plan, self._scratch[thread], thread, self._threads, self._barrier_counter)

        self._on_threads(run)
        features[:] = self._maps[LAST_MAPS][: len(pixels), 1 : 1 + self._side, 1 : 1 + self._side]

    def _new_scratch(self) -> kernels.Scratch:
        crop_px, int16 = self._network.crop_px, self._network.packing == INT16
        # Rows are an even number of pixels, so whole pairs; `pack` reads whole vectors, up to one row past the last.
        image = (crop_px + 7, crop_px + 6 + crop_px % 2, 3)
        read = [packed.layer.source for packed in self._network.layers if packed.kind == kernels.DIRECT]
        elements = INPUT_TILE**2 * kernels.TILES_PER_BLOCK
        return kernels.Scratch(
            image=aligned_zeros(image),
            ring=aligned_zeros((3, math.ceil(crop_px / 2) + 2, 64)),
            tiles=aligned_zeros((elements * self._channels,)),
            products=aligned_zeros((elements * self._channels,)),
            scales=aligned_zeros((elements,)),
            packed_image=aligned_zeros((math.prod(image) if int16 else 0,), np.int16),
            packed_maps=aligned_zeros((max(self._maps[place].size for place in read) if int16 else 0,), np.int16),
        )

    def _convolution_table(self) -> np.ndarray:
        rows = []
        for packed in self._network.layers:
            layer = packed.layer
            row = {"kind": packed.kind, "window": layer.conv.window, "add": int(layer.add), "relu": int(layer.relu)}
            row |= {"packing": self._network.packing, "scales": packed.scales.ctypes.data}
            row |= {"weight": packed.weight.ctypes.data, "bias": packed.bias.ctypes.data}
            for end, place in (("x", layer.source), ("y", layer.target)):
                maps = self._maps[place]
                stride = maps[0].size if len(maps) > 1 else 0
                row |= {end: maps.ctypes.data, f"{end}_stride": stride}
                row |= {f"{end}_width": maps.shape[2], f"{end}_channels": maps.shape[3]}
            row |= {"y_side": self._sides[layer.target[0]]}
            rows.append(tuple(row[name] for name in kernels.CONVOLUTION.names or ()))
        return np.array(rows, kernels.CONVOLUTION)


def _pack_layer(layer: Layer, packing: int, transform: ImageTransform) -> PackedLayer:
    conv = layer.conv
    if conv.stride > 1:
        kind = kernels.DIRECT if conv.window <= 3 else kernels.STEM
        filters = conv.weight.transpose(2, 3, 1, 0).reshape(conv.window, -1, len(conv.bias))
        if filters.shape[1] % packing:  # a row of the stem's window
            filters = np.pad(filters, ((0, 0), (0, 1), (0, 0)))
        filters = filters.reshape(1, -1, len(conv.bias))
    else:
        kind = kernels.WINOGRAD
        transform_1d = filter_transform(packing)
        filters = np.kron(transform_1d, transform_1d) @ conv.weight.reshape(-1, 9).T.astype(float)
        filters = filters.astype(np.float32).reshape(-1, *conv.weight.shape[:2]).transpose(0, 2, 1)
    if packing == FLOAT32:
        weight, scales = _pack(filters, packing), np.empty(0, np.float32)
    else:
        scales = _column_scales(filters)
        with np.errstate(invalid="ignore"):  # NaN weights get NaN scales, so their outputs stay NaN
            weight = _pack(np.rint(filters / scales[:, None]).astype(np.int16), packing)
        if kind == kernels.STEM:
            scales *= _stem_norm(transform) / ROW_NORM
    return PackedLayer(layer, kind, weight, aligned_copy(scales), aligned_copy(conv.bias))


def _column_scales(filters: np.ndarray) -> np.ndarray:
    """Return by what to divide the columns of (n, K, Co) for int16: (n, Co)."""
    norm, largest = np.linalg.norm(filters, axis=1), np.abs(filters).max(1)
    scales = np.maximum(norm / COLUMN_NORM, largest / np.iinfo(np.int16).max)
    return np.where(scales == 0, 1, scales).astype(np.float32)


def _stem_norm(transform: ImageTransform) -> float:
    """Return the largest norm of a window of the stem, 7 x 7 normalized pixels."""
    mean, std = np.array(transform.mean), np.array(transform.std)
    return float(7 * np.linalg.norm(np.maximum(mean, 1 - mean) / std))


def _pack(weights: np.ndarray, packing: int) -> np.ndarray:
    """Pack weights (n, K, Co) in panels: (n, Co / PANEL, K, PANEL), or (n, Co / PANEL, K / 2, PANEL, 2) in int16."""
    count, rows, columns = weights.shape
    panels = weights.reshape(count, rows // packing, packing, columns // PANEL, PANEL).transpose(0, 3, 1, 4, 2)
    return aligned_copy(panels)
