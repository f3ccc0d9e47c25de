"""The transforms of Winograd's F(4 x 4, 3 x 3), in LLVM IR. The letters are those of Lavin and Gray 2015."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from serve_app.inference.runtimes.compiled.llvm import (
    I64,
    VECTOR,
    VECTOR_FLOATS,
    Vector,
    for_each_vector,
    load,
    offset,
    store,
)
from serve_app.inference.runtimes.winograd.packing import FLOAT32, INT16, by_packing

OUTPUT_TILE, INPUT_TILE = 4, 6  # sides of the tiles


# Besides 0 and infinity, the products are values of polynomials at a, -a, b and -b. Lavin and Gray's 1 and 2 need the
# fewest multiplications; with the others, rounding to int16 costs least.
POINTS = {FLOAT32: (1.0, 2.0), INT16: (2 / 3, 3 / 2)}


def filter_transform(packing: int) -> np.ndarray:
    """Return the matrix G, float64 (6, 3): a filter g becomes G g G^T."""
    a, b = POINTS[packing]
    rows = [[1 / (a * b) ** 2, 0, 0]]
    for point, other in ((a, b), (b, a)):
        scale = 2 * point**2 * (point**2 - other**2)
        rows += [[1 / scale, x / scale, x**2 / scale] for x in (point, -point)]
    return np.array([*rows, [0, 0, 1]])


def input_transform_1d(d: Sequence[Vector], a: float, b: float) -> list[Vector]:
    """Transform six inputs: B^T d."""
    even, odd = d[4] - b**2 * d[2], a * (d[3] - b**2 * d[1])
    even_b, odd_b = d[4] - a**2 * d[2], b * (d[3] - a**2 * d[1])
    first, last = (
        (a * b) ** 2 * near - (a**2 + b**2) * middle + far
        for near, middle, far in ((d[0], d[2], d[4]), (d[1], d[3], d[5]))
    )
    return [first, even + odd, even - odd, even_b + odd_b, even_b - odd_b, last]


def output_transform_1d(m: Sequence[Vector], a: float, b: float) -> list[Vector]:
    """Transform six products into four outputs: A^T m."""
    sums, differences, sums_b, differences_b = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [
        m[0] + sums + sums_b,
        a * differences + b * differences_b,
        a**2 * sums + b**2 * sums_b,
        a**3 * differences + b**3 * differences_b + m[5],
    ]


def write_input_transform(code: ir.IRBuilder, *arguments: Any) -> None:
    """Transform the 6 x 6 input tile at x, in all channels: B^T d B. Its 36 elements are a stride from each other."""
    x, row, channels, out, stride, packing = arguments
    points = POINTS[packing]
    with for_each_vector(code, channels) as at:
        columns = [
            input_transform_1d(
                [load(code, offset(code, offset(code, at(x), row, i), channels, j)) for i in range(INPUT_TILE)], *points
            )
            for j in range(INPUT_TILE)
        ]
        for i in range(INPUT_TILE):
            for j, value in enumerate(input_transform_1d([column[i] for column in columns], *points)):
                store(value, offset(code, at(out), stride, INPUT_TILE * i + j))


def write_output_transform(code: ir.IRBuilder, *arguments: Any) -> None:
    """Transform 36 products into the 4 x 4 output tile at out: A^T m A, plus bias, then ReLU.

    Only height x width outputs are written: the rest of the tile is outside of the feature map.
    """
    x, stride, channels, bias, out, row, pixel, height, width, add, packing = arguments
    points = POINTS[packing]
    zero = Vector(code, ir.Constant(VECTOR, [0.0] * VECTOR_FLOATS))
    with for_each_vector(code, channels) as at:
        columns = [
            output_transform_1d(
                [load(code, offset(code, at(x), stride, INPUT_TILE * i + j)) for i in range(INPUT_TILE)], *points
            )
            for j in range(INPUT_TILE)
        ]
        biases = load(code, at(bias))
        for i in range(OUTPUT_TILE):
            values = [value + biases for value in output_transform_1d([column[i] for column in columns], *points)]
            with code.if_then(code.icmp_signed(">", height, ir.Constant(I64, i)), likely=True):
                for j, value in enumerate(values):
                    with code.if_then(code.icmp_signed(">", width, ir.Constant(I64, j)), likely=True):
                        target = offset(code, offset(code, at(out), row, i), pixel, j)
                        store((value + load(code, target) if add else value).maximum(zero), target)


input_transform = by_packing("piipi", write_input_transform)
output_transform = by_packing("piippiiii", write_output_transform, 0)
output_transform_add = by_packing("piippiiii", write_output_transform, 1)
