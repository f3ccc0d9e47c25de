"""Run a batch with the convolutions of kernels.py: pack the weights, plan the order, start the threads."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from serve_app.inference.network import STAGES, Convolution, Network
from serve_app.inference.runtimes.winograd import kernels
from serve_app.model_card import ImageTransform

# The matrix G of F(4 x 4, 3 x 3) in Lavin and Gray 2015, arXiv:1509.09308: a filter g becomes G g G^T.
FILTER_TRANSFORM = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], float) / 24
IMAGES_PER_PASS = 8  # enough to read the last stages' weights from memory seldom
# Stages that one image passes after the other: their feature maps are larger than their weights, and stay in the cache.
IMAGE_WISE_STAGES = 2

Maps = tuple[int, str]  # feature maps: the stage, and "x" for its results or "y" for those between two convolutions


class Layer(NamedTuple):
    """A convolution with packed weights, and the feature maps between which it runs."""

    kind: int
    window: int
    weight: np.ndarray
    bias: np.ndarray
    source: Maps
    target: Maps
    add: bool = False
    relu: bool = True


class PackedNetwork:
    """The weights of a network in the layout of the kernels, for any number of runtimes. 160 MB.

    Raises:
        ImportError: This CPU has neither AVX2 nor AVX-512.
    """

    def __init__(self, network: Network, transform: ImageTransform) -> None:
        if not kernels.SUPPORTED:
            raise ImportError("this CPU has neither AVX2 nor AVX-512")
        self.crop_px = transform.crop_px
        mean, std = np.array(transform.mean), np.array(transform.std)
        # Pixels are 0-255; mean and std are defined for 0-1.
        rows = [np.tile(values, self.crop_px) for values in (1 / (255 * std), -mean / std)]
        self.normalization = np.stack(rows).astype(np.float32)
        self.layers = [_direct_layer(network.stem, kernels.STEM, (0, "x"), (0, "x"))]
        for stage, blocks in enumerate(network.stages):
            x, y, previous = (stage, "x"), (stage, "y"), (stage - 1, "x")
            for block in blocks:
                if block.shortcut is None:
                    self.layers.append(_winograd_layer(block.conv1, x, y))
                else:
                    self.layers.append(_direct_layer(block.conv1, kernels.DIRECT, previous, y))
                    self.layers.append(_direct_layer(block.shortcut, kernels.DIRECT, previous, x, relu=False))
                self.layers.append(_winograd_layer(block.conv2, y, x, add=True))


class WinogradRuntime:
    """Runs a packed network on some threads, with feature maps of its own, 20 MB at 224 px."""

    name, workers = "winograd", 1

    def __init__(self, network: PackedNetwork, threads: int) -> None:
        self._network, self._threads = network, threads
        self._helpers = ThreadPoolExecutor(threads - 1, "winograd") if threads > 1 else None
        self._barrier_counter = np.zeros(1, np.int64)
        stem_side = math.ceil(network.crop_px / 2)
        self._sides = [math.ceil(stem_side / (2 << stage)) for stage in range(len(STAGES))]
        self._maps = {(stage, name): self._feature_maps(stage, name) for stage in range(len(STAGES)) for name in "xy"}
        self._convolutions = self._convolution_table()
        self._schedules = [self._schedule(images) for images in range(IMAGES_PER_PASS + 1)]
        channels = self._maps[len(STAGES) - 1, "x"].shape[-1]
        block = (kernels.INPUT_TILE**2 * kernels.TILES_PER_BLOCK * channels,)
        shapes = ((network.crop_px + 6, network.crop_px + 6, 3), (3, stem_side + 2, 64), block, block)
        self._scratch = [kernels.Scratch(*map(_aligned_zeros, shapes)) for _ in range(threads)]
        self(np.zeros((1, network.crop_px, network.crop_px, 3), np.uint8))  # compiles the kernels if none are cached

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """See Runtime; one thread at a time."""
        last, side = self._maps[len(STAGES) - 1, "x"], self._sides[-1]
        features = np.empty((len(pixels), side, side, last.shape[-1]), np.float32)
        passes = math.ceil(len(pixels) / IMAGES_PER_PASS)
        for i in range(passes):
            images = slice(len(pixels) * i // passes, len(pixels) * (i + 1) // passes)
            self._forward(np.ascontiguousarray(pixels[images]))
            features[images] = last[: images.stop - images.start, 1 : 1 + side, 1 : 1 + side]
        return features.transpose(0, 3, 1, 2)

    def _forward(self, pixels: np.ndarray) -> None:
        def run(thread: int) -> None:
            plan = (self._convolutions, self._schedules[len(pixels)], self._network.normalization)
            kernels.run(pixels, *plan, self._scratch[thread], thread, self._threads, self._barrier_counter)

        helpers = [self._helpers.submit(run, thread) for thread in range(1, self._threads)] if self._helpers else []
        run(0)
        for helper in helpers:
            helper.result()

    def _feature_maps(self, stage: int, name: str) -> np.ndarray:
        """Allocate feature maps: a width of whole tiles, and a border of zeros."""
        # Maps that no later stage reads are free again after each image.
        image_wise = stage < IMAGE_WISE_STAGES and (stage, name) != (IMAGE_WISE_STAGES - 1, "x")
        width = kernels.OUTPUT_TILE * math.ceil(self._sides[stage] / kernels.OUTPUT_TILE) + 2
        return _aligned_zeros((1 if image_wise else IMAGES_PER_PASS, width, width, 64 << stage))

    def _convolution_table(self) -> np.ndarray:
        rows = []
        for layer in self._network.layers:
            row = {name: int(getattr(layer, name)) for name in ("kind", "window", "add", "relu")}
            row |= {name: getattr(layer, name).ctypes.data for name in ("weight", "bias")}
            for end, place in (("x", layer.source), ("y", layer.target)):
                maps = self._maps[place]
                stride = maps[0].size if len(maps) > 1 else 0
                row |= {end: maps.ctypes.data, f"{end}_stride": stride}
                row |= {f"{end}_width": maps.shape[2], f"{end}_channels": maps.shape[3]}
            row |= {"y_side": self._sides[layer.target[0]]}
            rows.append(tuple(row[name] for name in kernels.CONVOLUTION.names or ()))
        return np.array(rows, kernels.CONVOLUTION)

    def _schedule(self, images: int) -> np.ndarray:
        """List (layer, first image, images): each image through the first stages, then all through the others."""
        stages = [layer.target[0] for layer in self._network.layers]
        image_wise = sum(stage < IMAGE_WISE_STAGES for stage in stages)
        steps = [(layer, image, 1) for image in range(images) for layer in range(image_wise)]
        return np.array(steps + [(layer, 0, images) for layer in range(image_wise, len(stages))], np.int64)


def _winograd_layer(conv: Convolution, source: Maps, target: Maps, add: bool = False) -> Layer:
    filters = np.kron(FILTER_TRANSFORM, FILTER_TRANSFORM) @ conv.weight.reshape(-1, 9).T.astype(float)
    filters = filters.astype(np.float32).reshape(-1, *conv.weight.shape[:2]).transpose(0, 2, 1)
    return Layer(kernels.WINOGRAD, 3, _pack(filters), _aligned_copy(conv.bias), source, target, add=add)


def _direct_layer(conv: Convolution, kind: int, source: Maps, target: Maps, relu: bool = True) -> Layer:
    columns = conv.weight.transpose(2, 3, 1, 0).reshape(1, -1, len(conv.bias))
    return Layer(kind, conv.window, _pack(columns), _aligned_copy(conv.bias), source, target, relu=relu)


def _pack(weights: np.ndarray) -> np.ndarray:
    """Pack weights in panels: (n, K, Co) becomes (n, Co / PANEL, K, PANEL)."""
    count, rows, columns = weights.shape
    return _aligned_copy(weights.reshape(count, rows, columns // kernels.PANEL, kernels.PANEL).transpose(0, 2, 1, 3))


def _aligned_copy(values: np.ndarray) -> np.ndarray:
    copy = _aligned_zeros(values.shape)
    copy[...] = values
    return copy


def _aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Allocate float32 zeros that begin at the start of a cache line."""
    line, size = 4 * kernels.CACHE_LINE_FLOATS, 4 * math.prod(shape)
    buffer = np.zeros(size + line, np.uint8)
    start = -buffer.ctypes.data % line
    return buffer[start : start + size].view(np.float32).reshape(shape)
