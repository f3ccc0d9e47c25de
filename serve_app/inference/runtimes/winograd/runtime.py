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
from serve_app.inference.runtimes.winograd.product import PANEL
from serve_app.model_card import ImageTransform

# The matrix G of F(4 x 4, 3 x 3) in Lavin and Gray 2015, arXiv:1509.09308: a filter g becomes G g G^T.
FILTER_TRANSFORM = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], float) / 24


class PackedLayer(NamedTuple):
    """A layer, how it is computed, and its weights in the layout of the kernels."""

    layer: Layer
    kind: int
    weight: np.ndarray
    bias: np.ndarray


class PackedNetwork:
    """The weights of a network in the layout of the kernels, for any number of runtimes. 160 MB.

    Raises:
        ImportError: This CPU has neither AVX2 nor AVX-512.
    """

    def __init__(self, network: Network, transform: ImageTransform) -> None:
        if not kernels.SUPPORTED:
            raise ImportError("this CPU has neither AVX2 nor AVX-512")
        self.crop_px = transform.crop_px
        self.normalization = row_normalization(transform)
        self.layers = [_pack_layer(layer) for layer in list_layers(network)]


class WinogradRuntime(CompiledRuntime):
    """Runs a packed network on some threads, with feature maps of its own, 20 MB at 224 px."""

    name = "winograd"

    def __init__(self, network: PackedNetwork, threads: int) -> None:
        super().__init__([packed.layer for packed in network.layers], network.crop_px, threads)
        self._network = network
        self._sides = map_sides(network.crop_px)
        # A width of whole tiles, and a border of zeros.
        tile = kernels.OUTPUT_TILE
        widths = [tile * math.ceil(side / tile) + 2 for side in self._sides]
        self._maps = {
            (stage, name): aligned_zeros((map_images((stage, name)), widths[stage], widths[stage], 64 << stage))
            for stage, name in EVERY_MAPS
        }
        self._convolutions = self._convolution_table()
        stem_side = math.ceil(network.crop_px / 2)
        block = (kernels.INPUT_TILE**2 * kernels.TILES_PER_BLOCK * self._channels,)
        shapes = ((network.crop_px + 6, network.crop_px + 6, 3), (3, stem_side + 2, 64), block, block)
        self._scratch = [kernels.Scratch(*map(aligned_zeros, shapes)) for _ in range(threads)]
        self(np.zeros((1, network.crop_px, network.crop_px, 3), np.uint8))  # compiles the kernels if none are cached

    def _forward(self, pixels: np.ndarray, features: np.ndarray) -> None:
        plan = (self._convolutions, self._schedules[len(pixels)], self._network.normalization)

        def run(thread: int) -> None:
            kernels.run(pixels, *plan, self._scratch[thread], thread, self._threads, self._barrier_counter)

        self._on_threads(run)
        features[:] = self._maps[LAST_MAPS][: len(pixels), 1 : 1 + self._side, 1 : 1 + self._side]

    def _convolution_table(self) -> np.ndarray:
        rows = []
        for packed in self._network.layers:
            layer = packed.layer
            row = {"kind": packed.kind, "window": layer.conv.window, "add": int(layer.add), "relu": int(layer.relu)}
            row |= {"weight": packed.weight.ctypes.data, "bias": packed.bias.ctypes.data}
            for end, place in (("x", layer.source), ("y", layer.target)):
                maps = self._maps[place]
                stride = maps[0].size if len(maps) > 1 else 0
                row |= {end: maps.ctypes.data, f"{end}_stride": stride}
                row |= {f"{end}_width": maps.shape[2], f"{end}_channels": maps.shape[3]}
            row |= {"y_side": self._sides[layer.target[0]]}
            rows.append(tuple(row[name] for name in kernels.CONVOLUTION.names or ()))
        return np.array(rows, kernels.CONVOLUTION)


def _pack_layer(layer: Layer) -> PackedLayer:
    conv = layer.conv
    if conv.stride > 1:
        kind = kernels.DIRECT if conv.window <= 3 else kernels.STEM
        filters = conv.weight.transpose(2, 3, 1, 0).reshape(1, -1, len(conv.bias))
    else:
        kind = kernels.WINOGRAD
        filters = np.kron(FILTER_TRANSFORM, FILTER_TRANSFORM) @ conv.weight.reshape(-1, 9).T.astype(float)
        filters = filters.astype(np.float32).reshape(-1, *conv.weight.shape[:2]).transpose(0, 2, 1)
    return PackedLayer(layer, kind, _pack(filters), aligned_copy(conv.bias))


def _pack(weights: np.ndarray) -> np.ndarray:
    """Pack weights in panels: (n, K, Co) becomes (n, Co / PANEL, K, PANEL)."""
    count, rows, columns = weights.shape
    return aligned_copy(weights.reshape(count, rows, columns // PANEL, PANEL).transpose(0, 2, 1, 3))
