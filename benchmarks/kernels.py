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
from serve_app.inference.runtimes.amx import runtime as amx
from serve_app.inference.runtimes.amx import tiles
from serve_app.inference.runtimes.base import Runtime
from serve_app.inference.runtimes.compiled.llvm import NO_LOWER_BOUND
from serve_app.inference.runtimes.compiled.plan import aligned_zeros, map_sides
from serve_app.inference.runtimes.folding import fold as fold_model
from serve_app.inference.runtimes.torch import TorchRuntime
from serve_app.inference.runtimes.winograd import kernels
from serve_app.inference.runtimes.winograd.product import MAX_ROWS, PANEL, product
from serve_app.inference.runtimes.winograd.runtime import PackedNetwork, WinogradRuntime
from serve_app.inference.runtimes.winograd.transforms import OUTPUT_TILE
from serve_app.inference.torch_model import to_arrays
from serve_app.model_card import ImageTransform

BATCH_SIZES = (1, 4, 8)
ROWS, DEPTH = 4 * MAX_ROWS, 128  # a product whose factors and sums stay in the first-level cache
PRODUCTS = 20_000
TAPS = 9
MULTIPLY_ADDS = 2 * tiles.TILE_ROWS * tiles.DEPTH * tiles.PANEL  # of a panel and two row tiles, for one tap and step


@njit(nogil=True)
def _repeat_product(times: int, packing: int, a: np.ndarray, b: np.ndarray, bias: np.ndarray, c: np.ndarray) -> None:
    a_address, b_address, bias_address, c_address = a.ctypes.data, b.ctypes.data, bias.ctypes.data, c.ctypes.data
    rows, depth = a.shape
    for _ in range(times):
        windows = (a_address, depth, 1, depth, 0, bias_address, 0)
        product((packing, *windows, b_address, bias_address, bias_address, NO_LOWER_BOUND, c_address, PANEL, rows))


@njit(nogil=True)
def _repeat_tile_product(
    times: int, shapes: np.ndarray, inputs: np.ndarray, weights: np.ndarray, offsets: np.ndarray, sums: np.ndarray
) -> None:
    a, b = inputs.ctypes.data, inputs.ctypes.data + tiles.TILE_BYTES
    tiles.set_tile_shapes((shapes.ctypes.data,))
    for _ in range(times):
        addresses = (offsets.ctypes.data, weights.ctypes.data, sums.ctypes.data)
        tiles.multiply_float32((a, b, tiles.ROW_BYTES, 2 * tiles.TILE_BYTES, 0, 1, *addresses, TAPS))
    tiles.release_tiles(())


def winograd_floor(network: PackedNetwork, rounds: int) -> tuple[int, float]:
    """Return the multiply-adds of one image, including tiles that reach beyond the edge of a feature map.

    With them, those that the micro-kernel does per second when it never waits for memory; the best round counts.
    """
    random = np.random.default_rng(0)
    a, b = random.random((ROWS, DEPTH), np.float32), random.random((DEPTH, PANEL), np.float32)
    bias, c = np.zeros(PANEL, np.float32), np.empty((ROWS, PANEL), np.float32)
    _repeat_product(1, network.packing, a, b, bias, c)
    seconds = min(_time(_repeat_product, PRODUCTS, network.packing, a, b, bias, c) for _ in range(rounds))
    sides, count = map_sides(network.crop_px), 0
    for packed in network.layers:
        side = math.ceil(network.crop_px / 2) if packed.kind == kernels.STEM else sides[packed.layer.target[0]]
        if packed.kind == kernels.WINOGRAD:
            side = math.ceil(side / OUTPUT_TILE)
        count += packed.weight.size * side**2  # each weight is used once per output pixel, or once per tile
    return count, ROWS * DEPTH * PANEL * network.packing * PRODUCTS / seconds


def amx_floor(runtime: amx.AmxRuntime, rounds: int) -> tuple[int, float]:
    """Return the multiply-adds of one image in bfloat16, including rows that are dropped; float32 takes three for one.

    With them, those that the matrix unit does per second when it never waits for memory; the best round counts.
    """
    inputs, weights, sums = (
        aligned_zeros((size,), np.uint8)
        for size in (4 * tiles.TILE_BYTES, TAPS * 2 * tiles.HALF_STEP_BYTES, tiles.SUMS_BYTES)
    )
    arguments = (runtime._plan.tile_shapes, inputs, weights, np.zeros(TAPS, np.int64), sums)
    _repeat_tile_product(1, *arguments)
    seconds = min(_time(_repeat_tile_product, PRODUCTS, *arguments) for _ in range(rounds))
    rate = TAPS * 3 * MULTIPLY_ADDS * PRODUCTS / seconds
    steps = 0
    for number, conv in enumerate(runtime._plan.convolutions):
        row_tiles = conv["row_tiles"] * (1 if number else math.ceil(runtime._network.crop_px / 2))
        steps += row_tiles * conv["panels"] * conv["steps"] * conv["taps"] / 2
    products = 3 if runtime._plan.halves == tiles.FLOAT32 else 1
    return int(steps * products * MULTIPLY_ADDS), rate


def _time(function: Callable[..., object], *arguments: object) -> float:
    start = time.thread_time()
    function(*arguments)
    return time.thread_time() - start


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop-px", type=int, default=224, help="side of the images")
    parser.add_argument("--rounds", type=int, default=10, help="rounds in which the runtimes take turns")
    options = parser.parse_args()
    transform = ImageTransform(
        resize_px=options.crop_px, crop_px=options.crop_px, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    torch.manual_seed(0)
    model = resnet18().eval()
    network = fold(to_arrays(model))
    runtimes: dict[str, Runtime] = {}
    floors: dict[str, tuple[int, float]] = {}
    try:
        for int16 in (False, True):
            packed = PackedNetwork(network, transform, int16)
            vector_unit = WinogradRuntime(packed, 1)
            runtimes[vector_unit.name], floors[vector_unit.name] = vector_unit, winograd_floor(packed, options.rounds)
        for bfloat16 in (False, True):
            matrix_unit = amx.AmxRuntime(amx.PackedNetwork(network, transform, bfloat16), 1)
            runtimes[matrix_unit.name], floors[matrix_unit.name] = matrix_unit, amx_floor(matrix_unit, options.rounds)
    except ImportError as error:
        print(f"not measured: {error}")
    runtimes["torch"] = TorchRuntime(fold_model(model), transform, 1)
    least_ms = {}
    for name, (count, rate) in floors.items():
        least_ms[name] = count / rate * 1000
        print(
            f"{name}: {count / 1e6:.1f} million multiply-adds per image, the core does {rate / 1e9:.1f} billion per s; "
            f"least {least_ms[name]:.1f} ms"
        )
    print(f"median (best) ms per image of {options.rounds} rounds; x is the ratio to the least:")
    for size in BATCH_SIZES:
        pixels = np.random.default_rng(size).integers(0, 256, (size, options.crop_px, options.crop_px, 3), np.uint8)
        times: dict[str, list[float]] = {name: [] for name in runtimes}
        for _ in range(options.rounds + 1):
            for name, runtime in runtimes.items():
                times[name].append(_time(runtime, pixels) * 1000 / size)
        for name, ms in times.items():
            median = statistics.median(ms[1:])
            ratio = f" {median / least_ms[name]:.2f} x," if name in least_ms else ""
            checksum = hashlib.sha256(np.ascontiguousarray(runtimes[name](pixels))).hexdigest()[:16]
            print(f"batch {size}: {name} {median:.1f} ({min(ms[1:]):.1f}),{ratio} features {checksum}")


if __name__ == "__main__":
    main()
