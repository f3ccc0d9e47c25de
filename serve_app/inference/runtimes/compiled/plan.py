"""The plan of a compiled runtime: which layer runs on which images, on which threads, between which feature maps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from serve_app.inference.network import STAGES, Convolution, Network
from serve_app.inference.runtimes.compiled.llvm import CACHE_LINE_FLOATS
from serve_app.model_card import ImageTransform

IMAGES_PER_PASS = 8  # enough to read the last stages' weights from memory seldom
# Stages that one image passes after the other: their feature maps are larger than their weights, and stay in the cache.
IMAGE_WISE_STAGES = 2

Maps = tuple[int, str]  # feature maps: the stage, and "x" for its results or "y" for those between two convolutions
EVERY_MAPS: list[Maps] = [(stage, name) for stage in range(len(STAGES)) for name in "xy"]
LAST_MAPS: Maps = (len(STAGES) - 1, "x")


class Layer(NamedTuple):
    """A convolution and the feature maps between which it runs. The stem reads the image, and pools its result."""

    conv: Convolution
    source: Maps
    target: Maps
    add: bool = False  # to what the target holds
    relu: bool = True


def list_layers(network: Network) -> list[Layer]:
    """List the convolutions in the order in which they run; the first is the stem."""
    layers = [Layer(network.stem, (0, "x"), (0, "x"))]
    for stage, blocks in enumerate(network.stages):
        x, y, previous = (stage, "x"), (stage, "y"), (stage - 1, "x")
        for block in blocks:
            layers.append(Layer(block.conv1, previous if block.shortcut else x, y))
            if block.shortcut:
                layers.append(Layer(block.shortcut, previous, x, relu=False))
            layers.append(Layer(block.conv2, y, x, add=True))
    return layers


def map_sides(crop_px: int) -> list[int]:
    """Return the side of the feature maps of each stage."""
    return [math.ceil(crop_px / (4 << stage)) for stage in range(len(STAGES))]


def map_images(maps: Maps) -> int:
    """Return for how many images feature maps have room: one where no later stage reads them."""
    stage, name = maps
    image_wise = stage < IMAGE_WISE_STAGES and (stage, name) != (IMAGE_WISE_STAGES - 1, "x")
    return 1 if image_wise else IMAGES_PER_PASS


def row_normalization(transform: ImageTransform) -> np.ndarray:
    """Return float32 (2, 3 S): factors of a row of pixels, and what is added after that."""
    mean, std = np.array(transform.mean), np.array(transform.std)
    # Pixels are 0-255; mean and std are defined for 0-1.
    rows = [np.tile(values, transform.crop_px) for values in (1 / (255 * std), -mean / std)]
    return np.stack(rows).astype(np.float32)


class CompiledRuntime(ABC):
    """Runs a batch in passes of up to IMAGES_PER_PASS images, each on some threads."""

    name: str
    workers = 1

    def __init__(self, layers: Sequence[Layer], crop_px: int, threads: int) -> None:
        self._threads = threads
        self._helpers = ThreadPoolExecutor(threads - 1, self.name) if threads > 1 else None
        self._barrier_counter = np.zeros(1, np.int64)
        self._schedules = [_schedule(layers, images) for images in range(IMAGES_PER_PASS + 1)]
        self._side = map_sides(crop_px)[-1]
        self._channels = len(layers[-1].conv.bias)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """See Runtime; one thread at a time."""
        features = np.empty((len(pixels), self._side, self._side, self._channels), np.float32)
        passes = math.ceil(len(pixels) / IMAGES_PER_PASS)
        for i in range(passes):
            images = slice(len(pixels) * i // passes, len(pixels) * (i + 1) // passes)
            self._forward(np.ascontiguousarray(pixels[images]), features[images])
        return features.transpose(0, 3, 1, 2)

    @abstractmethod
    def _forward(self, pixels: np.ndarray, features: np.ndarray) -> None:
        """Run up to IMAGES_PER_PASS images, uint8 (n, S, S, 3), and write their features, float32 (n, h, w, 512)."""

    def _on_threads(self, run: Callable[[int], None]) -> None:
        """Call ``run`` with the number of each thread, at the same time."""
        helpers = [self._helpers.submit(run, thread) for thread in range(1, self._threads)] if self._helpers else []
        run(0)
        for helper in helpers:
            helper.result()


def aligned_copy(values: np.ndarray) -> np.ndarray:
    """Copy an array to the start of a cache line."""
    copy = aligned_zeros(values.shape, values.dtype)
    copy[...] = values
    return copy


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """Allocate zeros that begin at the start of a cache line."""
    line, size = 4 * CACHE_LINE_FLOATS, np.dtype(dtype).itemsize * math.prod(shape)
    buffer = np.zeros(size + line, np.uint8)
    start = -buffer.ctypes.data % line
    return buffer[start : start + size].view(dtype).reshape(shape)


def _schedule(layers: Sequence[Layer], images: int) -> np.ndarray:
    """List (layer, first image, images): each image through the first stages, then all through the others."""
    stages = [layer.target[0] for layer in layers]
    image_wise = sum(stage < IMAGE_WISE_STAGES for stage in stages)
    steps = [(layer, image, 1) for image in range(images) for layer in range(image_wise)]
    return np.array(steps + [(layer, 0, images) for layer in range(image_wise, len(stages))], np.int64)
