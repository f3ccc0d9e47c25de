"""What the kernels compute with a few instructions, on tiles and vectors, in LLVM IR.

A product of two float32 numbers is computed from their *halves*: a number is the sum of two of bfloat16, the high and
the low one, up to 2^-17 of it. A pointer is an address in bytes; strides and offsets count bytes where they are those
of tiles, else floats.
"""

from __future__ import annotations

import ctypes
import sys
from functools import reduce
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from serve_app.inference.runtimes.compiled.llvm import (
    AVX512,
    CPU_FEATURES,
    I32,
    I64,
    VECTOR,
    VECTOR_FLOATS,
    Routine,
    Vector,
    call_one,
    for_each_vector,
    load,
    numba_intrinsic,
    offset,
    splat,
    store,
)

SUPPORTED = bool(AVX512 and CPU_FEATURES.get("amx-tile") and CPU_FEATURES.get("amx-bf16"))
TILE_ROWS, ROW_BYTES = 16, 64  # of a tile register; a row holds 16 float32 or 32 bfloat16
TILE_BYTES = TILE_ROWS * ROW_BYTES
DEPTH = 32  # bfloat16 in a row of a tile: input channels that one instruction multiplies
PANEL = 32  # output channels that are computed together: two tiles of sums
SUMS_BYTES = 4 * TILE_BYTES  # of a pair of row tiles
HALF_STEP_BYTES = 2 * TILE_BYTES  # a panel's weights for DEPTH inputs: two tiles of high halves; low halves follow
BFLOAT16, FLOAT32 = 1, 2  # halves of each factor of a product
TAPS = (1, 7, 9)  # pixels of the window of a shortcut, rows of that of the stem, pixels of all others
REPLACE, ADD, FLOATS = range(3)  # what becomes of a result: y is replaced, or increased, or replaced by float32
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18  # Linux on x86-64: a system call and its arguments

I8, I16 = ir.IntType(8), ir.IntType(16)
BYTES = I8.as_pointer()
INTEGERS, HALVES = ir.VectorType(I32, VECTOR_FLOATS), ir.VectorType(I16, VECTOR_FLOATS)
HALF_VECTOR = VECTOR_FLOATS // 2  # length of HALVES, in floats


def permit() -> None:
    """Ask Linux for the matrix unit, for all threads of this process.

    Raises:
        ImportError: The CPU has none, or the system does not permit it.
    """
    if not SUPPORTED:
        raise ImportError("this CPU has no AMX with bfloat16")
    request = (ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA)
    if not sys.platform.startswith("linux") or ctypes.CDLL(None).syscall(*request):
        raise ImportError("the system does not permit AMX")


def tile_instruction(code: ir.IRBuilder, name: str, *operands: ir.Value | int) -> None:
    """Write an instruction of the matrix unit; a number names a tile register."""
    values = [ir.Constant(I8, operand) if isinstance(operand, int) else operand for operand in operands]
    function_type = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    code.call(cgutils.get_or_insert_function(code.module, function_type, f"llvm.x86.{name}"), values)


def write_set_tile_shapes(code: ir.IRBuilder, shapes: ir.Value) -> None:
    """Configure the tile registers of this thread."""
    tile_instruction(code, "ldtilecfg", code.bitcast(shapes, BYTES))


def write_release_tiles(code: ir.IRBuilder) -> None:
    """Give the tile registers back, so that the system need not save them with the thread."""
    tile_instruction(code, "tilerelease")


def store_sums(code: ir.IRBuilder, sums: ir.Value, total: int) -> None:
    """Store a tile of sums: the rows of the second row tile follow those of the first."""
    distance = ir.Constant(I64, total // 2 * 2 * TILE_BYTES + total % 2 * ROW_BYTES)
    target = code.gep(code.bitcast(sums, BYTES), [distance])
    tile_instruction(code, "tilestored64", total, target, ir.Constant(I64, 2 * ROW_BYTES))


def write_store_sums(code: ir.IRBuilder, sums: ir.Value) -> None:
    """Store all sums."""
    for total in range(4):
        store_sums(code, sums, total)


def write_multiply(code: ir.IRBuilder, *arguments: Any) -> None:
    """Multiply two row tiles, which begin at a and b, by a panel of weights. The sums stay in tiles.

    A product of float32 numbers is that of their high halves, plus those of one's high and the other's low half. What
    is left out, low times low, is 2^-16 of the product at most. Tiles 0 and 1 hold the sums of the first row tile, 2
    and 3 those of the second; 4 and 5 hold inputs, 6 and 7 weights.

    The last argument says whether products are of float32 or of bfloat16, which leaves out the low halves.

    The loop over the taps, the argument before it, is unrolled. Each of its ends stores a tile that nothing reads: on
    the CPU measured, storing the first tile after more than eleven taps costs 0.25 us, as much as five taps.
    """
    a, b, window, low, step_distance, steps, tap_offsets, weight, dump, taps, halves = arguments
    inputs = [code.bitcast(pointer, BYTES) for pointer in (a, b)]
    weight, row = code.bitcast(weight, BYTES), ir.Constant(I64, ROW_BYTES)
    tap_offsets = code.bitcast(tap_offsets, I64.as_pointer())
    offsets = [code.load(code.gep(tap_offsets, [ir.Constant(I64, tap)])) for tap in range(taps)]

    def load_inputs(distance: ir.Value) -> None:
        for number, pointer in enumerate(inputs):
            tile_instruction(code, "tileloadd64", 4 + number, code.gep(pointer, [distance]), window)

    def load_weights(pointer: ir.Value, first: int) -> None:
        for number in range(2):
            tile = code.gep(pointer, [ir.Constant(I64, (first + number) * TILE_BYTES)])
            tile_instruction(code, "tileloadd64", 6 + number, tile, row)

    def multiply_tiles() -> None:
        for total in range(4):
            tile_instruction(code, "tdpbf16ps", total, 4 + total // 2, 6 + total % 2)

    for total in range(4):
        tile_instruction(code, "tilezero", total)
    with cgutils.for_range(code, steps, intp=I64) as step:
        channels = code.mul(step.index, step_distance)
        step_weight = code.gep(weight, [code.mul(step.index, ir.Constant(I64, taps * halves * HALF_STEP_BYTES))])
        for tap, tap_offset in enumerate(offsets):
            high = code.add(tap_offset, channels)
            tap_weight = code.gep(step_weight, [ir.Constant(I64, tap * halves * HALF_STEP_BYTES)])
            load_weights(tap_weight, 0)
            if halves == FLOAT32:
                load_inputs(code.add(high, low))
                multiply_tiles()
            load_inputs(high)
            multiply_tiles()
            if halves == FLOAT32:
                load_weights(tap_weight, 2)
                multiply_tiles()
        store_sums(code, dump, 0)


def write_multiply_taps(code: ir.IRBuilder, *arguments: Any) -> None:
    """Multiply as above; the argument before the last is the number of taps."""
    *factors, taps, halves = arguments
    call_one(code, {n: Routine("ppiiiippp", write_multiply, n, halves) for n in TAPS}, taps, factors)


def store_halves(vector: Vector, pointer: ir.Value, low: ir.Value) -> None:
    """Write a vector as two of bfloat16, whose sum it is up to 2^-17 of it; the second comes ``low`` floats later."""
    code = vector.code
    upper_bits = ir.Constant(INTEGERS, [0xFFFF0000] * VECTOR_FLOATS)
    rounding = ir.Constant(INTEGERS, [0x8000] * VECTOR_FLOATS)
    sixteen = ir.Constant(INTEGERS, [16] * VECTOR_FLOATS)
    high = code.and_(code.add(code.bitcast(vector.value, INTEGERS), rounding), upper_bits)
    rest = code.bitcast(code.fsub(vector.value, code.bitcast(high, VECTOR)), INTEGERS)
    for bits, target in ((high, pointer), (code.add(rest, rounding), offset(code, pointer, low))):
        half = code.trunc(code.lshr(bits, sixteen), HALVES)
        code.store(half, code.bitcast(target, HALVES.as_pointer())).align = 2


def load_halves(code: ir.IRBuilder, pointer: ir.Value, low: ir.Value) -> Vector:
    """Read what ``store_halves`` wrote."""
    sixteen = ir.Constant(INTEGERS, [16] * VECTOR_FLOATS)

    def read(source: ir.Value) -> Vector:
        half = code.load(code.bitcast(source, HALVES.as_pointer()))
        half.align = 2
        return Vector(code, code.bitcast(code.shl(code.zext(half, INTEGERS), sixteen), VECTOR))

    return read(pointer) + read(offset(code, pointer, low))


def write_finish(code: ir.IRBuilder, *arguments: Any) -> None:
    """Add the bias to the sums of a row tile, and write its outputs to y, as the last argument says."""
    sums, outputs, bias, lower_bound, y, pixel, low, result = arguments
    halves = range(PANEL // VECTOR_FLOATS)
    biases = [load(code, offset(code, bias, VECTOR_FLOATS, half)) for half in halves]
    lower_bound = splat(code, lower_bound)
    with cgutils.for_range(code, ir.Constant(I64, TILE_ROWS), intp=I64) as row:
        is_output = code.trunc(code.lshr(outputs, row.index), ir.IntType(1))
        with code.if_then(is_output, likely=True):
            row_sums, row_y = offset(code, sums, PANEL, row.index), offset(code, y, pixel, row.index)
            for half in halves:
                target = offset(code, row_y, half * (VECTOR_FLOATS if result == FLOATS else HALF_VECTOR))
                value = load(code, offset(code, row_sums, VECTOR_FLOATS, half)) + biases[half]
                if result == ADD:
                    value = value + load_halves(code, target, low)
                value = value.maximum(lower_bound)
                if result == FLOATS:
                    store(value, target)
                else:
                    store_halves(value, target, low)


def write_finish_as(code: ir.IRBuilder, *arguments: ir.Value) -> None:
    """Finish as the last argument, REPLACE, ADD or FLOATS, says."""
    *sums, result = arguments
    kinds = {kind: Routine("pipfpii", write_finish, kind) for kind in (REPLACE, ADD, FLOATS)}
    call_one(code, kinds, result, sums)


def write_max_pool(code: ir.IRBuilder, *arguments: ir.Value) -> None:
    """Take the maximum of three pixels of each of three rows of float32, and write it as halves."""
    *rows, y, low = arguments
    with for_each_vector(code, ir.Constant(I64, PANEL)) as at:
        pixels = (offset(code, row, PANEL, pixel) for row in rows for pixel in range(3))
        store_halves(reduce(Vector.maximum, (load(code, at(pixel)) for pixel in pixels)), at(y, HALF_VECTOR), low)


def write_split(code: ir.IRBuilder, x: ir.Value, floats: ir.Value, y: ir.Value, low: ir.Value) -> None:
    """Write float32 numbers as halves."""
    with for_each_vector(code, floats) as at:
        store_halves(load(code, at(x)), at(y, HALF_VECTOR), low)


def write_join(code: ir.IRBuilder, x: ir.Value, low: ir.Value, floats: ir.Value, y: ir.Value) -> None:
    """Write halves as float32 numbers."""
    with for_each_vector(code, floats) as at:
        store(load_halves(code, at(x, HALF_VECTOR), low), at(y))


store_all_sums = numba_intrinsic(Routine("p", write_store_sums))
set_tile_shapes = numba_intrinsic(Routine("p", write_set_tile_shapes))
release_tiles = numba_intrinsic(Routine("", write_release_tiles))
multiply_float32, multiply_bfloat16 = (
    numba_intrinsic(Routine("ppiiiipppi", write_multiply_taps, halves)) for halves in (FLOAT32, BFLOAT16)
)
finish = numba_intrinsic(Routine("pipfpiii", write_finish_as))
max_pool = numba_intrinsic(Routine("ppppi", write_max_pool))
split = numba_intrinsic(Routine("pipi", write_split))
join = numba_intrinsic(Routine("piip", write_join))
