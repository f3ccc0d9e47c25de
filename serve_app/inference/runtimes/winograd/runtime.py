"""The backbone by our own convolutions (``cpu_kernels``): the fastest on a CPU with AVX2 or AVX-512.

Of twenty convolutions thirteen have a window of 3 x 3 and a stride of 1, and go by Winograd's F(4 x 4, 3 x 3).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from serve_app.inference.runtimes.base import CPU
from serve_app.inference.runtimes.onnx_graph import STAGES, parameters
from serve_app.inference.runtimes.winograd import kernels as kernels
from serve_app.model_card import ImageTransform

FILTER = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], float) / 24
IMAGES = 8  # at a time: enough to read the last stages' weights seldom
APART = 2  # stages that an image goes through by itself, as its feature maps are larger there than the weights


class Layer(NamedTuple):
    """A convolution, and between which feature maps: a stage's number and x or y, of which x is the stage's result."""

    kind: int
    size: int
    weight: np.ndarray
    bias: np.ndarray
    source: tuple[int, str]
    target: tuple[int, str]
    add: bool = False
    relu: bool = True


class Network:
    """A model's weights as the kernels want them, for any number of backbones. 160 MB."""

    def __init__(self, model: ResNet, transform: ImageTransform) -> None:
        """Lay the weights out.

        Args:
            model: Batch norms folded into the convolutions, on the CPU.
            transform: Its mean, std and crop size.

        Raises:
            ImportError: This CPU has neither AVX2 nor AVX-512.
        """
        if not kernels.AVAILABLE:
            raise ImportError("this CPU has neither AVX2 nor AVX-512")
        self.crop_px = transform.crop_px
        mean, std = np.array(transform.mean), np.array(transform.std)
        # Pixels arrive as 0-255, mean and std are meant for 0-1.
        self.line = np.stack([np.tile(values, self.crop_px) for values in (1 / (255 * std), -mean / std)])
        self.line = self.line.astype(np.float32)
        self.layers = [_direct(model.conv1, kernels.STEM, (0, "x"), (0, "x"))]
        for number, name in enumerate(STAGES):
            x, y, before = (number, "x"), (number, "y"), (number - 1, "x")
            for block in getattr(model, name):
                assert isinstance(block, BasicBlock)
                if block.downsample is None:
                    self.layers.append(_winograd(block.conv1, x, y))
                else:
                    self.layers.append(_direct(block.conv1, kernels.DIRECT, before, y))
                    self.layers.append(_direct(block.downsample[0], kernels.DIRECT, before, x, relu=False))
                self.layers.append(_winograd(block.conv2, y, x, add=True))


class WinogradRuntime:
    """Our own kernels. For one thread at a time, which they may help with others of their own."""

    name, device, workers = "winograd", CPU, 1

    def __init__(self, network: Network, threads: int) -> None:
        """Make room for feature maps, 20 MB at 224 px, and compile the kernels if that was never done on this CPU."""
        self._run, self._network, self._threads = kernels.run, network, threads
        self._helpers = ThreadPoolExecutor(threads - 1, "winograd") if threads > 1 else None
        self._met = np.zeros(1, np.int64)
        stem = math.ceil(network.crop_px / 2)
        self._sides = [math.ceil(stem / (2 << stage)) for stage in range(len(STAGES))]
        self._maps = {(stage, name): self._room(stage, name) for stage in range(len(STAGES)) for name in "xy"}
        self._convolutions = self._table()
        self._schedules = [self._schedule(images) for images in range(IMAGES + 1)]
        widest = kernels.PATCH**2 * kernels.TILES * self._maps[len(STAGES) - 1, "x"].shape[-1]
        sizes = ((network.crop_px + 6, network.crop_px + 6, 3), (3, stem + 2, 64), (widest,), (widest,))
        self._scratch = [kernels.Scratch(*map(_aligned, sizes)) for _ in range(threads)]
        self(np.zeros((1, network.crop_px, network.crop_px, 3), np.uint8))

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """See Runtime. Not for two threads at a time."""
        last, side = self._maps[len(STAGES) - 1, "x"], self._sides[-1]
        features = np.empty((len(pixels), side, side, last.shape[-1]), np.float32)
        groups = math.ceil(len(pixels) / IMAGES)
        for group in range(groups):
            some = slice(len(pixels) * group // groups, len(pixels) * (group + 1) // groups)
            self._forward(np.ascontiguousarray(pixels[some]))
            features[some] = last[: some.stop - some.start, 1 : 1 + side, 1 : 1 + side]
        return torch.from_numpy(features).permute(0, 3, 1, 2)

    def _forward(self, pixels: np.ndarray) -> None:
        def part(number: int) -> None:
            scratch, line = self._scratch[number], self._network.line
            self._run(pixels, self._convolutions, schedule, line, scratch, number, self._threads, self._met)

        schedule = self._schedules[len(pixels)]
        others = [self._helpers.submit(part, number) for number in range(1, self._threads)] if self._helpers else []
        part(0)
        for other in others:
            other.result()

    def _room(self, stage: int, name: str) -> np.ndarray:
        """Feature maps whose tiles all lie inside, with their border."""
        # What no later stage reads is free when an image has gone through.
        images = 1 if stage < APART and (stage, name) != (APART - 1, "x") else IMAGES
        width = kernels.TILE * math.ceil(self._sides[stage] / kernels.TILE) + 2
        return _aligned((images, width, width, 64 << stage))

    def _table(self) -> np.ndarray:
        rows = []
        for layer in self._network.layers:
            row = {name: int(getattr(layer, name)) for name in ("kind", "size", "add", "relu")}
            row |= {name: getattr(layer, name).ctypes.data for name in ("weight", "bias")}
            for end, place in (("x", layer.source), ("y", layer.target)):
                maps = self._maps[place]
                apart = maps[0].size if len(maps) > 1 else 0
                row |= {end: maps.ctypes.data, f"{end}_apart": apart}
                row |= {f"{end}_width": maps.shape[2], f"{end}_channels": maps.shape[3]}
            row |= {"y_side": self._sides[layer.target[0]]}
            rows.append(tuple(row[name] for name in kernels.CONVOLUTION.names or ()))
        return np.array(rows, kernels.CONVOLUTION)

    def _schedule(self, images: int) -> np.ndarray:
        """Which layer, from which image, how many: each image through the first stages, then all through the others."""
        targets = [layer.target[0] for layer in self._network.layers]
        first = sum(stage < APART for stage in targets)
        steps = [(layer, image, 1) for image in range(images) for layer in range(first)]
        return np.array(steps + [(layer, 0, images) for layer in range(first, len(targets))], np.int64)


def _winograd(conv: nn.Conv2d, source: tuple[int, str], target: tuple[int, str], add: bool = False) -> Layer:
    weight, bias = parameters(conv)
    filters = np.kron(FILTER, FILTER) @ weight.reshape(-1, 9).T.astype(float)
    filters = filters.astype(np.float32).reshape(-1, conv.out_channels, conv.in_channels).transpose(0, 2, 1)
    return Layer(kernels.WINOGRAD, 3, _panels(filters), _copied(bias), source, target, add=add)


def _direct(conv: nn.Conv2d, kind: int, source: tuple[int, str], target: tuple[int, str], relu: bool = True) -> Layer:
    weight, bias = parameters(conv)
    columns = weight.transpose(2, 3, 1, 0).reshape(1, -1, conv.out_channels)
    return Layer(kind, conv.kernel_size[0], _panels(columns), _copied(bias), source, target, relu=relu)


def _panels(weights: np.ndarray) -> np.ndarray:
    """(n, K, Co) -> (n, Co / PANEL, K, PANEL)."""
    count, rows, columns = weights.shape
    return _copied(weights.reshape(count, rows, columns // kernels.PANEL, kernels.PANEL).transpose(0, 2, 1, 3))


def _copied(values: np.ndarray) -> np.ndarray:
    made = _aligned(values.shape)
    made[...] = values
    return made


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros, float32, that begin where a line of the cache does."""
    line = 4 * kernels.LINE
    room = np.zeros(4 * math.prod(shape) + line, np.uint8)
    start = -room.ctypes.data % line
    return room[start : start + 4 * math.prod(shape)].view(np.float32).reshape(shape)
