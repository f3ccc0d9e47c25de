"""The packing of numbers: how many take the space of a float, one of float32 or a pair of int16.

In int16, rows and columns of a product are divided by scales of their own, so that no sum leaves int32: by Cauchy and
Schwarz it is at most the product of a row's norm and a column's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from serve_app.inference.runtimes.compiled.llvm import (
    F32,
    I64,
    VECTOR_FLOATS,
    Routine,
    Vector,
    call_float,
    call_one,
    for_each_vector,
    load,
    numba_intrinsic,
    offset,
    splat,
    store_int16,
    sum_squares,
)

FLOAT32, INT16 = 1, 2  # numbers in the space of a float: also what a distance in numbers is divided by
ROW_NORM, COLUMN_NORM = 32_000.0, 65_000.0  # of the integers; their product leaves room for rounding below 2^31
TINY = 1e-20  # keeps the scale of a row of zeros from being zero


def by_packing(arguments: str, write: Callable[..., None], *constants: int) -> Callable[..., Any]:
    """Make a function of a routine for each packing, which is its last constant; a call begins with the packing."""
    routines = {packing: Routine(arguments, write, *constants, packing) for packing in (FLOAT32, INT16)}

    def choose(code: ir.IRBuilder, packing: ir.Value, *values: ir.Value) -> None:
        call_one(code, routines, packing, values)

    choose.__name__ = "_".join(["choose", write.__name__, *map(str, constants)])
    return numba_intrinsic(Routine(f"i{arguments}", choose))


def write_pack_row(code: ir.IRBuilder, source: ir.Value, floats: ir.Value, target: ir.Value, scale: ir.Value) -> None:
    """Write a row in int16, and its scale."""
    squares = code.fadd(sum_squares(code, source, floats), ir.Constant(F32, TINY))
    row_scale = code.fdiv(call_float(code, "sqrt", squares), ir.Constant(F32, ROW_NORM))
    code.store(row_scale, scale)
    write_pack(code, source, floats, target, code.fdiv(ir.Constant(F32, 1.0), row_scale))


def write_pack(code: ir.IRBuilder, source: ir.Value, floats: ir.Value, target: ir.Value, factor: ir.Value) -> None:
    """Write floats times a factor in int16."""
    factors = splat(code, factor).value
    with for_each_vector(code, floats) as at:
        scaled = code.fmul(load(code, at(source)).value, factors)
        store_int16(Vector(code, scaled), at(target, VECTOR_FLOATS // INT16))


def write_largest_square(
    code: ir.IRBuilder, pixels: ir.Value, count: ir.Value, channels: ir.Value, out: ir.Value
) -> None:
    """Write the largest sum of squares of a pixel's channels; NaN stays."""
    largest = cgutils.alloca_once_value(code, ir.Constant(F32, 0.0))
    with cgutils.for_range(code, count, intp=I64) as pixel:
        squares = sum_squares(code, offset(code, pixels, channels, pixel.index), channels)
        code.store(call_float(code, "maximum", code.load(largest), squares), largest)
    code.store(code.load(largest), out)


pack_row = numba_intrinsic(Routine("pipp", write_pack_row))
pack = numba_intrinsic(Routine("pipf", write_pack))
largest_square = numba_intrinsic(Routine("piip", write_largest_square))
