"""Convolutions of a ResNet, compiled at the first call for the vector units of this CPU.

README.md in this folder describes the layouts and the methods. No function here holds Python's global interpreter lock.

Pointers are addresses in bytes; strides and offsets count floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from serve_app.inference.runtimes.compiled.llvm import (
    CPU_FEATURES,
    I64,
    NO_LOWER_BOUND,
    VECTOR,
    VECTOR_FLOATS,
    ZERO,
    Routine,
    Vector,
    barrier,
    for_each_vector,
    jit_cached,
    jit_inlined,
    load,
    numba_intrinsic,
    offset,
    part_bounds,
    store,
)
from serve_app.inference.runtimes.compiled.stem import BORDER, needed_rows, normalize_row, pooled_rows
from serve_app.inference.runtimes.winograd.product import PANEL, product

SUPPORTED = bool(CPU_FEATURES.get("avx2") and CPU_FEATURES.get("fma"))
OUTPUT_TILE, INPUT_TILE = 4, 6  # sides of the tiles of Winograd's F(4 x 4, 3 x 3)
TILES_PER_BLOCK = 32  # tiles that a Winograd convolution transforms at a time, so that they stay in the core's cache
STEM, DIRECT, WINOGRAD = range(3)

# One convolution from feature maps x to feature maps y. The maps of image n begin n strides after the address. "y_side"
# is the width of y without border and filling, "window" the side of a direct convolution's window, and "add" says
# whether the result is added to what y holds.
MAPS = [f"{maps}{field}" for maps in "xy" for field in ("", "_stride", "_width", "_channels")]
FIELDS = ("kind", "weight", "bias", *MAPS, "y_side", "window", "add", "relu")
CONVOLUTION = np.dtype([(name, np.int64) for name in FIELDS])


class Scratch(NamedTuple):
    """Memory of one thread: float32, zeros at first. S is the side of the crops."""

    image: np.ndarray  # (S + 6, S + 6, 3), a normalized image with the stem's border
    ring: np.ndarray  # (3, ceil(S / 2) + 2, 64), the last three rows of the stem's convolution, with a border
    tiles: np.ndarray  # (36 * tiles * channels), transformed input tiles of the largest Winograd convolution
    products: np.ndarray  # the same size, tiles times transformed filters


def input_transform_1d(d: Sequence[Vector]) -> list[Vector]:
    """Transform six inputs: B^T d of Lavin and Gray's F(4 x 4, 3 x 3)."""
    even, odd, sums, differences = d[4] - 4 * d[2], d[3] - 4 * d[1], d[4] - d[2], 2 * (d[3] - d[1])
    first, last = 4 * d[0] - 5 * d[2] + d[4], 4 * d[1] - 5 * d[3] + d[5]
    return [first, even + odd, even - odd, sums + differences, sums - differences, last]


def output_transform_1d(m: Sequence[Vector]) -> list[Vector]:
    """Transform six products into four outputs: A^T m of Lavin and Gray's F(4 x 4, 3 x 3)."""
    sums, differences, sums_34, differences_34 = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [
        m[0] + sums + sums_34,
        differences + 2 * differences_34,
        sums + 4 * sums_34,
        differences + 8 * differences_34 + m[5],
    ]


def write_input_transform(
    code: ir.IRBuilder, x: ir.Value, row: ir.Value, channels: ir.Value, out: ir.Value, stride: ir.Value
) -> None:
    """Transform the 6 x 6 input tile at x, in all channels: B^T d B. Its 36 elements are a stride from each other."""
    with for_each_vector(code, channels) as at:
        columns = [
            input_transform_1d(
                [load(code, offset(code, offset(code, at(x), row, i), channels, j)) for i in range(INPUT_TILE)]
            )
            for j in range(INPUT_TILE)
        ]
        for i in range(INPUT_TILE):
            for j, value in enumerate(input_transform_1d([column[i] for column in columns])):
                store(value, offset(code, at(out), stride, INPUT_TILE * i + j))


def write_output_transform(code: ir.IRBuilder, *arguments: Any) -> None:
    """Transform 36 products into the 4 x 4 output tile at out: A^T m A, plus bias, then ReLU.

    Only height x width outputs are written: the rest of the tile is outside of the feature map.
    """
    x, stride, channels, bias, out, row, pixel, height, width, add = arguments
    zero = Vector(code, ir.Constant(VECTOR, [0.0] * VECTOR_FLOATS))
    with for_each_vector(code, channels) as at:
        columns = [
            output_transform_1d(
                [load(code, offset(code, at(x), stride, INPUT_TILE * i + j)) for i in range(INPUT_TILE)]
            )
            for j in range(INPUT_TILE)
        ]
        biases = load(code, at(bias))
        for i in range(OUTPUT_TILE):
            values = [value + biases for value in output_transform_1d([column[i] for column in columns])]
            with code.if_then(code.icmp_signed(">", height, ir.Constant(I64, i)), likely=True):
                for j, value in enumerate(values):
                    with code.if_then(code.icmp_signed(">", width, ir.Constant(I64, j)), likely=True):
                        target = offset(code, offset(code, at(out), row, i), pixel, j)
                        store((value + load(code, target) if add else value).maximum(zero), target)


def write_max_pool(
    code: ir.IRBuilder, above: ir.Value, middle: ir.Value, below: ir.Value, channels: ir.Value, out: ir.Value
) -> None:
    """Take the maximum of three pixels of each of three rows."""
    with for_each_vector(code, channels) as at:
        pixels = (offset(code, at(row), channels, pixel) for row in (above, middle, below) for pixel in range(3))
        store(reduce(Vector.maximum, (load(code, pixel) for pixel in pixels)), at(out))


input_transform = numba_intrinsic(Routine("piipi", write_input_transform))
output_transform = numba_intrinsic(Routine("piippiiii", write_output_transform, 0))
output_transform_add = numba_intrinsic(Routine("piippiiii", write_output_transform, 1))
max_pool = numba_intrinsic(Routine("pppip", write_max_pool))


@jit_inlined
def convolve_stem(
    pixels: np.ndarray, conv: Any, number: int, normalization: Any, scratch: Scratch, thread: int, threads: int
) -> None:
    """Normalize an image, convolve it (7 x 7, stride 2, ReLU) and take the maximum (3 x 3, stride 2).

    Max-pooling follows each row of the convolution while that row is in the cache. Threads share the output rows.
    """
    image, ring = scratch.image, scratch.ring
    side, image_row = len(pixels), image.shape[1] * 3
    conv_side, ring_row = (side + 1) // 2, 4 * ring.shape[1] * ring.shape[2]
    begin, end = part_bounds(conv.y_side, thread, threads)
    convolved, begin_row, end_row = needed_rows(begin, end, conv_side, side)
    for y in range(begin_row, end_row):
        target = image[y + BORDER, BORDER : BORDER + side].reshape(3 * side)
        normalize_row(pixels[y].reshape(3 * side), normalization, target)
    image_start, ring_start = image.ctypes.data, ring.ctypes.data
    y_start = conv.y + 4 * (number * conv.y_stride + conv.y_width * conv.y_channels)
    for y in range(begin, end):
        while convolved < min(2 * y + 2, conv_side):
            for panel in range(0, conv.y_channels, PANEL):
                weight, bias = conv.weight + 4 * panel * 7 * 21, conv.bias + 4 * panel
                conv_row = ring_start + convolved % 3 * ring_row + 4 * (conv.y_channels + panel)
                window = image_start + 4 * 2 * convolved * image_row
                product((window, 6, 7, 21, image_row, weight, bias, ZERO, conv_row, conv.y_channels, conv_side))
            convolved += 1
        above, middle, below = pooled_rows(ring_start, ring_row, y, conv_side)
        for x in range(conv.y_side):
            from_left = 4 * 2 * x * conv.y_channels
            out = y_start + 4 * ((y * conv.y_width + x + 1) * conv.y_channels)
            max_pool((above + from_left, middle + from_left, below + from_left, conv.y_channels, out))


@jit_inlined
def convolve_direct(conv: Any, first: int, count: int, thread: int, threads: int) -> None:
    """Convolve images directly (1 x 1 or 3 x 3, stride 2); threads share the panels of output channels."""
    x_row, window_row = conv.x_width * conv.x_channels, conv.window * conv.x_channels
    y_row = conv.y_width * conv.y_channels
    first_window = (x_row + conv.x_channels) * (1 - conv.window // 2)
    lower_bound = ZERO if conv.relu else NO_LOWER_BOUND
    begin, end = part_bounds(conv.y_channels // PANEL, thread, threads)
    for panel in range(begin * PANEL, end * PANEL, PANEL):
        weight, bias = conv.weight + 4 * panel * conv.window * window_row, conv.bias + 4 * panel
        for image in range(first, first + count):
            x = conv.x + 4 * (image * conv.x_stride + first_window)
            y = conv.y + 4 * (image * conv.y_stride + y_row + conv.y_channels + panel)
            for _ in range(conv.y_side):
                windows = (x, 2 * conv.x_channels, conv.window, window_row, x_row)
                product((*windows, weight, bias, lower_bound, y, conv.y_channels, conv.y_side))
                x, y = x + 4 * 2 * x_row, y + 4 * y_row


@jit_inlined
def convolve_winograd(conv: Any, first: int, count: int, scratch: Scratch, thread: int, threads: int) -> None:
    """Convolve images by F(4 x 4, 3 x 3) (3 x 3, stride 1, ReLU)."""
    tiles, products = scratch.tiles.ctypes.data, scratch.products.ctypes.data
    zeros = scratch.image.ctypes.data  # the image's border begins with more zeros than a panel has channels
    tiles_per_row = (conv.y_side + OUTPUT_TILE - 1) // OUTPUT_TILE
    tiles_per_image, x_channels, y_channels = tiles_per_row * tiles_per_row, conv.x_channels, conv.y_channels
    x_row, y_row, panels = conv.x_width * x_channels, conv.y_width * y_channels, y_channels // PANEL
    # Threads share the tiles if there are many. If there are few, the weights are large, and threads share the panels.
    tile_parts, panel_parts = (threads, 1) if count * tiles_per_image >= TILES_PER_BLOCK * threads else (1, threads)
    blocks = (count * tiles_per_image + TILES_PER_BLOCK * tile_parts - 1) // (TILES_PER_BLOCK * tile_parts) * tile_parts
    begin_block, end_block = part_bounds(blocks, thread % tile_parts, tile_parts)
    begin_panel, end_panel = part_bounds(panels, thread % panel_parts, panel_parts)
    first_channel = 4 * begin_panel * PANEL
    channels = (end_panel - begin_panel) * PANEL
    for block in range(begin_block, end_block):
        begin, end = part_bounds(count * tiles_per_image, block, blocks)
        block_tiles = end - begin
        for number in range(begin, end):
            image = first + number // tiles_per_image
            y, x = number % tiles_per_image // tiles_per_row, number % tiles_per_row
            corner = conv.x + 4 * (image * conv.x_stride + OUTPUT_TILE * (y * x_row + x * x_channels))
            tile = tiles + 4 * (number - begin) * x_channels
            input_transform((corner, x_row, x_channels, tile, block_tiles * x_channels))
        for element in range(INPUT_TILE * INPUT_TILE):
            a = tiles + 4 * element * block_tiles * x_channels
            for panel in range(begin_panel, end_panel):
                b = conv.weight + 4 * (element * panels + panel) * x_channels * PANEL
                c = products + 4 * (element * block_tiles * y_channels + panel * PANEL)
                product((a, x_channels, 1, x_channels, 0, b, zeros, NO_LOWER_BOUND, c, y_channels, block_tiles))
        for number in range(begin, end):
            image = first + number // tiles_per_image
            y, x = number % tiles_per_image // tiles_per_row, number % tiles_per_row
            source = products + 4 * (number - begin) * y_channels + first_channel
            y_start = conv.y + 4 * (image * conv.y_stride + y_row + y_channels)
            out = y_start + 4 * OUTPUT_TILE * (y * y_row + x * y_channels) + first_channel
            height = min(OUTPUT_TILE, conv.y_side - OUTPUT_TILE * y)
            width = min(OUTPUT_TILE, conv.y_side - OUTPUT_TILE * x)
            elements = (source, block_tiles * y_channels, channels, conv.bias + first_channel)
            if conv.add:
                output_transform_add((*elements, out, y_row, y_channels, height, width))
            else:
                output_transform((*elements, out, y_row, y_channels, height, width))


@jit_cached
def run(
    pixels: np.ndarray,
    convolutions: np.ndarray,
    schedule: np.ndarray,
    normalization: np.ndarray,
    scratch: Scratch,
    thread: int,
    threads: int,
    counter: np.ndarray,
) -> None:
    """Run one thread's part of each convolution of a schedule, while the other threads run theirs.

    Args:
        pixels: uint8, (N, S, S, 3).
        convolutions: Of dtype CONVOLUTION.
        schedule: int64, (steps, 3): index of the convolution, first image, number of images.
        normalization: float32, (2, 3 S): factors of a row of pixels, and what is added after that.
        scratch: Of this thread alone.
        thread: Number of this thread, from 0.
        threads: Threads that run this schedule.
        counter: int64, (1), shared by the threads for their barriers; zero before the first call.
    """
    for step in range(len(schedule)):
        conv, first, count = convolutions[schedule[step, 0]], schedule[step, 1], schedule[step, 2]
        if conv.kind == STEM:
            convolve_stem(pixels[first], conv, first, normalization, scratch, thread, threads)
        elif conv.kind == DIRECT:
            convolve_direct(conv, first, count, thread, threads)
        else:
            convolve_winograd(conv, first, count, scratch, thread, threads)
        if threads > 1:
            barrier((counter.ctypes.data, threads))
