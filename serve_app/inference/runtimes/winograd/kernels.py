"""Convolutions of a ResNet, compiled at the first call for the vector units of this CPU.

README.md in this folder describes the layouts and the methods. No function here holds Python's global interpreter lock.

Pointers are addresses in bytes; strides and offsets count floats.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from serve_app.inference.runtimes.compiled.llvm import (
    CPU_FEATURES,
    NO_LOWER_BOUND,
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
from serve_app.inference.runtimes.winograd.packing import (
    FLOAT32,
    INT16,
    ROW_NORM,
    TINY,
    largest_square,
    pack,
    pack_row,
)
from serve_app.inference.runtimes.winograd.product import PANEL, product
from serve_app.inference.runtimes.winograd.transforms import (
    INPUT_TILE,
    OUTPUT_TILE,
    input_transform,
    output_transform,
    output_transform_add,
)

SUPPORTED = bool(CPU_FEATURES.get("avx2") and CPU_FEATURES.get("fma"))
TILES_PER_BLOCK = 32  # tiles that a Winograd convolution transforms at a time, so that they stay in the core's cache
STEM, DIRECT, WINOGRAD = range(3)

# One convolution from feature maps x to feature maps y. The maps of image n begin n strides after the address. "y_side"
# is the width of y without border and filling, "window" the side of a direct convolution's window, and "add" says
# whether the result is added to what y holds. "packing" is that of the products, "scales" are those of their columns.
MAPS = [f"{maps}{field}" for maps in "xy" for field in ("", "_stride", "_width", "_channels")]
FIELDS = ("kind", "packing", "weight", "scales", "bias", *MAPS, "y_side", "window", "add", "relu")
CONVOLUTION = np.dtype([(name, np.int64) for name in FIELDS])


class Scratch(NamedTuple):
    """Memory of one thread: float32 where nothing else is said, zeros at first. S is the side of the crops."""

    image: np.ndarray  # (S + 7, S + 6 or 7, 3), a normalized image with the stem's border; the width is even
    ring: np.ndarray  # (3, ceil(S / 2) + 2, 64), the last three rows of the stem's convolution, with a border
    tiles: np.ndarray  # (36 * tiles * channels), transformed input tiles of the largest Winograd convolution
    products: np.ndarray  # the same size, tiles times transformed filters
    scales: np.ndarray  # (36 * tiles), of the rows of a product in int16
    packed_image: np.ndarray  # the image in int16
    packed_maps: np.ndarray  # the maps that a direct convolution reads, in int16


def write_max_pool(
    code: ir.IRBuilder, above: ir.Value, middle: ir.Value, below: ir.Value, channels: ir.Value, out: ir.Value
) -> None:
    """Take the maximum of three pixels of each of three rows."""
    with for_each_vector(code, channels) as at:
        pixels = (offset(code, at(row), channels, pixel) for row in (above, middle, below) for pixel in range(3))
        store(reduce(Vector.maximum, (load(code, pixel) for pixel in pixels)), at(out))


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
    if conv.packing == INT16:
        scratch.scales[0] = 1  # the normalization contains the scale
        first, image_start = (begin_row + BORDER) * image_row, scratch.packed_image.ctypes.data
        floats = (end_row - begin_row + 1) * image_row // VECTOR_FLOATS * VECTOR_FLOATS
        pack((image.ctypes.data + 4 * first, floats, image_start + 2 * first, np.float32(1)))
    # Distances in floats of this packing. A row of the window is 21 numbers.
    image_row, window_row, step = image_row // conv.packing, (21 + conv.packing - 1) // conv.packing, 6 // conv.packing
    y_start = conv.y + 4 * (number * conv.y_stride + conv.y_width * conv.y_channels)
    for y in range(begin, end):
        while convolved < min(2 * y + 2, conv_side):
            for panel in range(0, conv.y_channels, PANEL):
                columns = (conv.weight + 4 * panel * 7 * window_row, conv.scales + 4 * panel, conv.bias + 4 * panel)
                conv_row = ring_start + convolved % 3 * ring_row + 4 * (conv.y_channels + panel)
                window = image_start + 4 * 2 * convolved * image_row
                rows = (window, step, 7, window_row, image_row, scratch.scales.ctypes.data, 0)
                product((conv.packing, *rows, *columns, ZERO, conv_row, conv.y_channels, conv_side))
            convolved += 1
        above, middle, below = pooled_rows(ring_start, ring_row, y, conv_side)
        for x in range(conv.y_side):
            from_left = 4 * 2 * x * conv.y_channels
            out = y_start + 4 * ((y * conv.y_width + x + 1) * conv.y_channels)
            max_pool((above + from_left, middle + from_left, below + from_left, conv.y_channels, out))


@jit_inlined
def pack_maps(conv: Any, first: int, count: int, scratch: Scratch) -> None:
    """Write the maps x of some images in int16, one after the other, and a scale for all windows of each image."""
    pixels, scales = conv.x_width * conv.x_width, scratch.scales
    for image in range(count):
        x = conv.x + 4 * (first + image) * conv.x_stride
        largest_square((x, pixels, conv.x_channels, scales[image:].ctypes.data))
        scales[image] = np.sqrt(scales[image] + TINY) * np.float32(conv.window / ROW_NORM)
        packed = scratch.packed_maps.ctypes.data + 2 * image * pixels * conv.x_channels
        pack((x, pixels * conv.x_channels, packed, 1 / scales[image]))


@jit_inlined
def convolve_direct(conv: Any, first: int, count: int, scratch: Scratch, thread: int, threads: int) -> None:
    """Convolve images directly (1 x 1 or 3 x 3, stride 2); threads share the panels of output channels."""
    x_start, x_stride, x_channels = conv.x + 4 * first * conv.x_stride, conv.x_stride, conv.x_channels // conv.packing
    scales = scratch.scales.ctypes.data
    if conv.packing == INT16:
        pack_maps(conv, first, count, scratch)
        x_start, x_stride = scratch.packed_maps.ctypes.data, conv.x_width * conv.x_width * x_channels
    x_row, window_row = conv.x_width * x_channels, conv.window * x_channels
    y_row = conv.y_width * conv.y_channels
    first_window = (x_row + x_channels) * (1 - conv.window // 2)
    lower_bound = ZERO if conv.relu else NO_LOWER_BOUND
    begin, end = part_bounds(conv.y_channels // PANEL, thread, threads)
    for panel in range(begin * PANEL, end * PANEL, PANEL):
        weight = conv.weight + 4 * panel * conv.window * window_row
        columns = (weight, conv.scales + 4 * panel, conv.bias + 4 * panel)
        for image in range(count):
            x = x_start + 4 * (image * x_stride + first_window)
            y = conv.y + 4 * ((first + image) * conv.y_stride + y_row + conv.y_channels + panel)
            for _ in range(conv.y_side):
                rows = (x, 2 * x_channels, conv.window, window_row, x_row, scales + 4 * image, 0)
                product((conv.packing, *rows, *columns, lower_bound, y, conv.y_channels, conv.y_side))
                x, y = x + 4 * 2 * x_row, y + 4 * y_row


@jit_inlined
def convolve_winograd(conv: Any, first: int, count: int, scratch: Scratch, thread: int, threads: int) -> None:
    """Convolve images by F(4 x 4, 3 x 3) (3 x 3, stride 1, ReLU)."""
    tiles, products = scratch.tiles.ctypes.data, scratch.products.ctypes.data
    zeros = scratch.image.ctypes.data  # the image's border begins with more zeros than a panel has channels
    scales = scratch.scales.ctypes.data
    tiles_per_row = (conv.y_side + OUTPUT_TILE - 1) // OUTPUT_TILE
    tiles_per_image, x_channels, y_channels = tiles_per_row * tiles_per_row, conv.x_channels, conv.y_channels
    tile_channels = x_channels // conv.packing
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
            if conv.packing == FLOAT32:
                tile = tiles + 4 * (number - begin) * x_channels
                input_transform((conv.packing, corner, x_row, x_channels, tile, block_tiles * x_channels))
            else:  # the products' memory is free meanwhile
                input_transform((conv.packing, corner, x_row, x_channels, products, x_channels))
                for element in range(INPUT_TILE * INPUT_TILE):
                    row = element * block_tiles + number - begin
                    target = (tiles + 4 * row * tile_channels, scales + 4 * row)
                    pack_row((products + 4 * element * x_channels, x_channels, *target))
        for element in range(INPUT_TILE * INPUT_TILE):
            a = tiles + 4 * element * block_tiles * tile_channels
            for panel in range(begin_panel, end_panel):
                column = (element * panels + panel) * PANEL
                columns = (conv.weight + 4 * column * tile_channels, conv.scales + 4 * column, zeros)
                c = products + 4 * (element * block_tiles * y_channels + panel * PANEL)
                rows = (a, tile_channels, 1, tile_channels, 0, scales + 4 * element * block_tiles, 1)
                product((conv.packing, *rows, *columns, NO_LOWER_BOUND, c, y_channels, block_tiles))
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
                output_transform_add((conv.packing, *elements, out, y_row, y_channels, height, width))
            else:
                output_transform((conv.packing, *elements, out, y_row, y_channels, height, width))


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
            convolve_direct(conv, first, count, scratch, thread, threads)
        else:
            convolve_winograd(conv, first, count, scratch, thread, threads)
        if threads > 1:
            barrier((counter.ctypes.data, threads))
