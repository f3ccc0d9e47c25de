"""Convolutions of a ResNet on the matrix unit of the CPU (Intel's AMX), compiled at the first call.

README.md in this folder describes the method and the layouts. No function here holds Python's global interpreter lock.

Pointers are addresses in bytes; offsets and distances count bytes, too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from serve_app.inference.runtimes.amx.tiles import (
    FLOAT32,
    HALF_STEP_BYTES,
    PANEL,
    ROW_BYTES,
    SUMS_BYTES,
    TILE_BYTES,
    finish,
    join,
    max_pool,
    multiply_bfloat16,
    multiply_float32,
    release_tiles,
    set_tile_shapes,
    split,
    store_all_sums,
)
from serve_app.inference.runtimes.compiled.llvm import (
    NO_LOWER_BOUND,
    ZERO,
    barrier,
    jit_cached,
    jit_inlined,
    part_bounds,
)
from serve_app.inference.runtimes.compiled.stem import BORDER, needed_rows, normalize_row, pooled_rows

PAIRS_PER_THREAD = 8  # threads share the pairs of tiles from here on, else the panels
PIXEL_BYTES = 6  # of an image: three halves

# One convolution from feature maps x to feature maps y. "x_image" is the distance of two images, "x_window" that of two
# windows, "x_low" that from a high half to its low half, "x_step" that of the same pixel in the next PANEL channels.
# "first_tap" and "first_row_tile" are places in the tables of ``Plan``, "result" is REPLACE, ADD or FLOATS.
X_FIELDS = ("x", "x_image", "x_window", "x_low", "x_step", "steps", "first_tap", "taps")
Y_FIELDS = ("y", "y_image", "y_row", "y_pixel", "y_low", "y_step", "panels", "first_row_tile", "row_tiles")
FIELDS = ("weight", "bias", *X_FIELDS, *Y_FIELDS, "result", "relu")
CONVOLUTION = np.dtype([(name, np.int64) for name in FIELDS])


class Plan(NamedTuple):
    """What to compute, for all threads."""

    tile_shapes: np.ndarray  # uint8, (64): the operand of LDTILECFG
    convolutions: np.ndarray  # of dtype CONVOLUTION; the first is the stem
    row_tiles: np.ndarray  # int64, (tiles, 3): offsets in x and y, and a bit for each row that is an output
    taps: np.ndarray  # int64: offset in x of each pixel of a window
    normalization: np.ndarray  # float32, (2, 3 S): factors of a row of pixels, and what is added after that
    halves: int  # FLOAT32 or BFLOAT16
    side: int  # of the first stage's feature maps


class Scratch(NamedTuple):
    """Memory of one thread, zeros at first. S is the side of the crops, C that of the stem's result."""

    row: np.ndarray  # float32, (3 S and zeros up to whole vectors), a normalized row
    image: np.ndarray  # uint16, (2, S + 6, 3 (S + 6) and a few), the image with a border: high and low halves
    ring: np.ndarray  # float32, (3, panels, C + 2, PANEL), the last three rows of the stem's result, with a border
    sums: np.ndarray  # float32, (2, 2 TILE_ROWS, PANEL): of a pair of tiles, and a place for what nothing reads


@jit_inlined
def place_of(conv: Any, number: int) -> tuple[int, int]:
    """Return the image of a batch's row tile, and the row tile's place in the table."""
    return number // conv.row_tiles, conv.first_row_tile + number % conv.row_tiles


@jit_inlined
def convolve(plan: Plan, conv: Any, x: int, y: int, count: int, scratch: Scratch, thread: int, threads: int) -> None:
    """Convolve the images at x; threads share the pairs of row tiles if there are many, else the panels.

    The sums of a pair are finished after the instructions that multiply the next one, so that the CPU does both at a
    time.
    """
    tiles, row_tiles, sums = count * conv.row_tiles, plan.row_tiles, scratch.sums.ctypes.data
    pairs = (tiles + 1) // 2
    pair_parts, panel_parts = (threads, 1) if pairs >= PAIRS_PER_THREAD * threads else (1, threads)
    begin_pair, end_pair = part_bounds(pairs, thread % pair_parts, pair_parts)
    begin_panel, end_panel = part_bounds(conv.panels, thread % panel_parts, panel_parts)
    distances = (conv.x_window, conv.x_low, conv.x_step)
    taps = plan.taps.ctypes.data + 8 * conv.first_tap
    lower_bound = ZERO if conv.relu else NO_LOWER_BOUND
    part_pairs = end_pair - begin_pair
    items = (end_panel - begin_panel) * part_pairs
    for item in range(items + 1):
        if item < items:
            panel, pair = begin_panel + item // part_pairs, begin_pair + item % part_pairs
            weight = conv.weight + panel * conv.steps * conv.taps * plan.halves * HALF_STEP_BYTES
            first_image, first_tile = place_of(conv, 2 * pair)
            second_image, second_tile = place_of(conv, min(2 * pair + 1, tiles - 1))
            first = x + first_image * conv.x_image + row_tiles[first_tile, 0]
            second = x + second_image * conv.x_image + row_tiles[second_tile, 0]
            factors = (first, second, *distances, conv.steps, taps, weight, sums + SUMS_BYTES, conv.taps)
            if plan.halves == FLOAT32:
                multiply_float32(factors)
            else:
                multiply_bfloat16(factors)
        if item > 0:
            panel, pair = begin_panel + (item - 1) // part_pairs, begin_pair + (item - 1) % part_pairs
            bias = conv.bias + 4 * PANEL * panel
            for number in range(2 * pair, min(2 * pair + 2, tiles)):
                image, tile = place_of(conv, number)
                target = y + image * conv.y_image + panel * conv.y_step + row_tiles[tile, 1]
                source, outputs = sums + number % 2 * 2 * TILE_BYTES, row_tiles[tile, 2]
                pixel, low = conv.y_pixel // 4, conv.y_low // 4
                finish((source, outputs, bias, lower_bound, target, pixel, low, conv.result))
        if item < items:
            store_all_sums((sums,))


@jit_inlined
def convolve_stem(pixels: np.ndarray, plan: Plan, number: int, scratch: Scratch, thread: int, threads: int) -> None:
    """Normalize an image, convolve it (7 x 7, stride 2, ReLU) and take the maximum (3 x 3, stride 2).

    Max-pooling follows each row of the convolution while that row is in the cache. Threads share the output rows.
    """
    conv, pooled, normalization = plan.convolutions[0], plan.convolutions[1], plan.normalization
    side, conv_side, row = len(pixels), (len(pixels) + 1) // 2, scratch.row
    image, ring = scratch.image.ctypes.data, scratch.ring.ctypes.data
    image_row, image_low = 2 * scratch.image.shape[2], 2 * scratch.image.shape[1] * scratch.image.shape[2]
    ring_row = conv.panels * conv.y_step
    begin, end = part_bounds(plan.side, thread, threads)
    convolved, begin_row, end_row = needed_rows(begin, end, conv_side, side)
    for y in range(begin_row, end_row):
        normalize_row(pixels[y].reshape(3 * side), normalization, row)
        target = image + (y + BORDER) * image_row + BORDER * PIXEL_BYTES
        split((row.ctypes.data, len(row), target, image_low // 4))
    for y in range(begin, end):
        while convolved < min(2 * y + 2, conv_side):
            windows = image + 2 * convolved * image_row
            convolve(plan, conv, windows, ring + convolved % 3 * ring_row + conv.y_pixel, 1, scratch, 0, 1)
            convolved += 1
        above, middle, below = pooled_rows(ring, ring_row, y, conv_side)
        for panel in range(conv.panels):
            out = pooled.x + number * pooled.x_image + y * pooled.y_row + panel * pooled.x_step
            for x in range(plan.side):
                left = panel * conv.y_step + 2 * x * conv.y_pixel
                max_pool((above + left, middle + left, below + left, out + ROW_BYTES * x, pooled.x_low // 4))


@jit_cached
def run(
    pixels: np.ndarray,
    schedule: np.ndarray,
    plan: Plan,
    scratch: Scratch,
    thread: int,
    threads: int,
    counter: np.ndarray,
    features: np.ndarray,
) -> None:
    """Run one thread's part of each convolution of a schedule, while the other threads run theirs.

    Args:
        pixels: uint8, (N, S, S, 3).
        schedule: int64, (steps, 3): index of the convolution, first image, number of images.
        plan: What to compute.
        scratch: Of this thread alone.
        thread: Number of this thread, from 0.
        threads: Threads that run this schedule.
        counter: int64, (1), shared by the threads for their barriers; zero before the first call.
        features: float32, (N, h, w, C), where the first thread writes the last feature maps.
    """
    set_tile_shapes((plan.tile_shapes.ctypes.data,))
    for step in range(len(schedule)):
        number, first, count = schedule[step, 0], schedule[step, 1], schedule[step, 2]
        if number == 0:
            convolve_stem(pixels[first], plan, first, scratch, thread, threads)
        else:
            conv = plan.convolutions[number]
            x, y = conv.x + first * conv.x_image, conv.y + first * conv.y_image
            convolve(plan, conv, x, y, count, scratch, thread, threads)
        if threads > 1:
            barrier((counter.ctypes.data, threads))
    release_tiles(())
    if thread == 0:
        last = plan.convolutions[-1]
        images, height, width, _ = features.shape
        for image in range(images):
            for y in range(height):
                for x in range(width):
                    for panel in range(last.panels):
                        source = last.y + image * last.y_image + y * last.y_row + ROW_BYTES * x + panel * last.y_step
                        join((source, last.y_low // 4, PANEL, features[image, y, x, panel * PANEL :].ctypes.data))
