"""The product of a few rows by a panel of weights, in LLVM IR: nearly all of the arithmetic."""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from serve_app.inference.runtimes.compiled.llvm import (
    AVX512,
    CACHE_LINE_FLOATS,
    I64,
    INT32_VECTOR,
    VECTOR,
    VECTOR_FLOATS,
    Routine,
    Vector,
    call_one,
    load,
    multiply_add,
    multiply_add_pairs,
    offset,
    prefetch,
    splat,
    store,
)
from serve_app.inference.runtimes.winograd.packing import FLOAT32, by_packing

PANEL = 2 * VECTOR_FLOATS  # output channels whose weights are stored together
MAX_ROWS = 8 if AVX512 else 6  # of a micro-kernel: two sums per row leave registers for the factors


class Product(NamedTuple):
    """The matrix product c = max(bias + a b, lower_bound), one panel wide: all its arguments except the rows of a.

    In int16, a float of a is a pair of numbers, and a float of b the pair of one output. Scales are for int16 only.
    """

    a: ir.Value  # each row consists of segments, each of which is contiguous
    a_row_stride: ir.Value
    segments: ir.Value  # of a row
    segment_floats: ir.Value
    segment_stride: ir.Value
    a_scales: ir.Value  # of the rows
    a_scale_stride: ir.Value
    b: ir.Value  # one row of the panel for each float of a row of a
    b_scales: ir.Value  # one row of the panel
    bias: ir.Value  # one row of the panel
    lower_bound: ir.Value  # float32: 0 for ReLU, -inf without
    c: ir.Value
    c_row_stride: ir.Value


PRODUCT_ARGUMENTS = "piiiipipppfpi"


def write_micro_kernel(code: ir.IRBuilder, *arguments: Any) -> None:
    """Multiply a few rows of a by a panel; the sums stay in registers. Last come the packing and the number of rows."""
    args, (packing, rows) = Product(*arguments[:-2]), arguments[-2:]
    sum_type, add_products = (VECTOR, multiply_add) if packing == FLOAT32 else (INT32_VECTOR, multiply_add_pairs)
    sums = [[cgutils.alloca_once(code, sum_type) for _ in range(2)] for _ in range(rows)]
    for row_sums in sums:
        for half, total in enumerate(row_sums):
            bias = load(code, offset(code, args.bias, VECTOR_FLOATS * half)).value
            code.store(bias if packing == FLOAT32 else ir.Constant(INT32_VECTOR, [0] * VECTOR_FLOATS), total)
    b_pointer = cgutils.alloca_once_value(code, args.b)
    panel_floats = code.mul(code.mul(args.segments, args.segment_floats), ir.Constant(I64, PANEL))
    with cgutils.for_range(code, args.segments, intp=I64) as segment:
        a_segment = offset(code, args.a, args.segment_stride, segment.index)
        with cgutils.for_range(code, args.segment_floats, intp=I64) as column:
            b_row = code.load(b_pointer)
            # Prefetch the next panel. With few rows the kernel waits for memory in any case.
            for line in range(0, PANEL if rows > MAX_ROWS // 2 else 0, CACHE_LINE_FLOATS):
                prefetch(code, offset(code, offset(code, b_row, panel_floats), line))
            factors = [load(code, offset(code, b_row, VECTOR_FLOATS * half)) for half in range(2)]
            for row, row_sums in enumerate(sums):
                a_column = offset(code, a_segment, column.index)
                factor = splat(code, code.load(offset(code, a_column, args.a_row_stride, row)))
                for half, total in enumerate(row_sums):
                    code.store(add_products(factor, factors[half], code.load(total)), total)
            code.store(offset(code, b_row, PANEL), b_pointer)
    lower_bound = splat(code, args.lower_bound)
    for row, row_sums in enumerate(sums):
        for half, total in enumerate(row_sums):
            value = Vector(code, code.load(total)) if packing == FLOAT32 else _scaled(code, args, row, half, total)
            c_row = offset(code, args.c, args.c_row_stride, row)
            store(value.maximum(lower_bound), offset(code, c_row, VECTOR_FLOATS * half))


def _scaled(code: ir.IRBuilder, args: Product, row: int, half: int, total: ir.Value) -> Vector:
    """Return the float32 of a sum in int32, plus the bias."""
    a_scale = splat(code, code.load(offset(code, args.a_scales, args.a_scale_stride, row)))
    b_scale, bias = (load(code, offset(code, values, VECTOR_FLOATS * half)) for values in (args.b_scales, args.bias))
    scale = Vector(code, code.fmul(a_scale.value, b_scale.value))
    return Vector(code, multiply_add(Vector(code, code.sitofp(code.load(total), VECTOR)), scale, bias.value))


def write_product(code: ir.IRBuilder, *arguments: Any) -> None:
    """Multiply any number of rows of a in parts whose sizes differ by at most one row. Last come rows and packing."""
    args, (rows, packing) = Product(*arguments[:-2]), arguments[-2:]
    micro_kernels = {n: Routine(PRODUCT_ARGUMENTS, write_micro_kernel, packing, n) for n in range(1, MAX_ROWS + 1)}
    parts = code.udiv(code.add(rows, ir.Constant(I64, MAX_ROWS - 1)), ir.Constant(I64, MAX_ROWS))
    with cgutils.for_range(code, parts, intp=I64) as part:
        begin = code.udiv(code.mul(rows, part.index), parts)
        end = code.udiv(code.mul(rows, code.add(part.index, ir.Constant(I64, 1))), parts)
        a, c = offset(code, args.a, args.a_row_stride, begin), offset(code, args.c, args.c_row_stride, begin)
        a_scales = offset(code, args.a_scales, args.a_scale_stride, begin)
        part_args = args._replace(a=a, c=c, a_scales=a_scales)
        call_one(code, micro_kernels, code.sub(end, begin), part_args)


product = by_packing(f"{PRODUCT_ARGUMENTS}i", write_product)
