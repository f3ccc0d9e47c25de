"""Time the CPU convolutions on one core, beside torch and the least possible time: ``python -m benchmarks.kernels``.

It prints ms per image in batches of 1, 4 and 8, for random weights, and a checksum of the features: two commits with
the same checksums compute the same bits. Times are CPU time of the calling thread, which other programs disturb less
than wall-clock time; still, nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numba import njit
from torchvision.models import resnet18

from serve_app.inference.network import fold
from serve_app.inference.runtimes.folding import fold as fold_model
from serve_app.inference.runtimes.torch import TorchRuntime
from serve_app.inference.runtimes.winograd import kernels
from serve_app.inference.runtimes.winograd.kernels import NO_LOWER_BOUND, PANEL, product
from serve_app.inference.runtimes.winograd.runtime import PackedNetwork, WinogradRuntime
from serve_app.inference.torch_model import to_arrays
from serve_app.model_card import ImageTransform

BATCH_SIZES = (1, 4, 8)
ROWS, DEPTH = 4 * kernels.MAX_ROWS, 128  # a product whose factors and sums stay in the first-level cache
PRODUCTS = 20_000


@njit(nogil=True)
def _repeat_product(times: int, a: np.ndarray, b: np.ndarray, bias: np.ndarray, c: np.ndarray) -> None:
    a_address, b_address, bias_address, c_address = a.ctypes.data, b.ctypes.data, bias.ctypes.data, c.ctypes.data
    rows, depth = a.shape
    for _ in range(times):
        product((a_address, depth, 1, depth, 0, b_address, bias_address, NO_LOWER_BOUND, c_address, PANEL, rows))


def multiply_adds_per_s(rounds: int) -> float:
    """Measure the micro-kernel when it never waits for memory; the best round counts."""
    random = np.random.default_rng(0)
    a, b = random.random((ROWS, DEPTH), np.float32), random.random((DEPTH, PANEL), np.float32)
    bias, c = np.zeros(PANEL, np.float32), np.empty((ROWS, PANEL), np.float32)
    _repeat_product(1, a, b, bias, c)
    seconds = min(_time(_repeat_product, PRODUCTS, a, b, bias, c) for _ in range(rounds))
    return ROWS * DEPTH * PANEL * PRODUCTS / seconds


def multiply_adds(network: PackedNetwork) -> int:
    """Count the multiply-adds of one image, including tiles that reach beyond the edge of a feature map."""
    stem_side, total = math.ceil(network.crop_px / 2), 0
    for layer in network.layers:
        side = stem_side if layer.kind == kernels.STEM else math.ceil(stem_side / (2 << layer.target[0]))
        if layer.kind == kernels.WINOGRAD:
            side = math.ceil(side / kernels.OUTPUT_TILE)
        total += layer.weight.size * side**2  # each weight is used once per output pixel, or once per tile
    return total


def _time(function: Callable[..., object], *arguments: object) -> float:
    start = time.thread_time()
    function(*arguments)
    return time.thread_time() - start


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop-px", type=int, default=224, help="side of the images")
    parser.add_argument("--rounds", type=int, default=10, help="rounds in which both runtimes take turns")
    options = parser.parse_args()
    transform = ImageTransform(
        resize_px=options.crop_px, crop_px=options.crop_px, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    torch.manual_seed(0)
    model = resnet18().eval()
    network = PackedNetwork(fold(to_arrays(model)), transform)
    runtimes = {"winograd": WinogradRuntime(network, 1), "torch": TorchRuntime(fold_model(model), transform, 1)}
    count, rate = multiply_adds(network), multiply_adds_per_s(options.rounds)
    least_ms = count / rate * 1000
    print(f"{count / 1e6:.1f} million multiply-adds per image; the micro-kernel does {rate / 1e9:.1f} billion per s")
    print(f"least: {least_ms:.1f} ms per image; median (best) ms per image of {options.rounds} rounds:")
    for size in BATCH_SIZES:
        pixels = np.random.default_rng(size).integers(0, 256, (size, options.crop_px, options.crop_px, 3), np.uint8)
        times: dict[str, list[float]] = {name: [] for name in runtimes}
        for _ in range(options.rounds + 1):
            for name, runtime in runtimes.items():
                times[name].append(_time(runtime, pixels) * 1000 / size)
        shown = ", ".join(f"{name} {statistics.median(ms[1:]):.1f} ({min(ms[1:]):.1f})" for name, ms in times.items())
        ratio = statistics.median(times["winograd"][1:]) / least_ms
        checksum = hashlib.sha256(np.ascontiguousarray(runtimes["winograd"](pixels))).hexdigest()[:16]
        print(f"batch {size}: {shown}, {ratio:.2f} x least; features {checksum}")


if __name__ == "__main__":
    main()
