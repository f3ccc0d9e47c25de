"""Code for the vector units of this CPU: written in LLVM IR, called from loops that numba compiles.

Compilers do not find good vector code for the innermost loops of a convolution, so these are written instruction by
instruction; numba compiles the loops around them. A pointer is an address in bytes; strides and offsets count floats.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# LLVM's own view of the CPU, which numba compiles for as well.
CPU_FEATURES = binding.get_host_cpu_features()
AVX512 = bool(CPU_FEATURES.get("avx512f") and CPU_FEATURES.get("avx512bw"))
AVX512_VNNI = AVX512 and bool(CPU_FEATURES.get("avx512vnni"))
VECTOR_FLOATS = 16 if AVX512 else 8
CACHE_LINE_FLOATS = 16
SPINS_BEFORE_YIELD = 1000  # checks of the barrier before a waiting thread offers its core to others

F32, I64, I32 = ir.FloatType(), ir.IntType(64), ir.IntType(32)
VECTOR, POINTER = ir.VectorType(F32, VECTOR_FLOATS), F32.as_pointer()
INT32_VECTOR = ir.VectorType(I32, VECTOR_FLOATS)
ARGUMENT_TYPES = {"p": POINTER, "i": I64, "f": F32}
NO_LOWER_BOUND, ZERO = np.float32(-np.inf), np.float32(0)


def jit_cached(function: Callable[..., Any]) -> Any:
    """Compile at the first call; later processes reuse the machine code if numba finds a folder for it.

    numba looks for changes only in the file of the function. So the name under which it keeps the code contains a
    digest of that file's folder and of this one.
    """
    folders = (Path(__file__).parent, Path(function.__code__.co_filename).parent)
    sources = [source for folder in folders for source in sorted(folder.glob("*.py"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    function.__qualname__ = f"{function.__name__}_{digest}"
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's home is writable
        return njit(nogil=True)(function)


jit_inlined = njit(nogil=True, inline="always")


class Vector:
    """A vector value of the code that is being written, with the arithmetic of a number, element by element."""

    def __init__(self, code: ir.IRBuilder, value: ir.Value) -> None:
        self.code, self.value = code, value

    def __add__(self, other: Vector) -> Vector:
        return Vector(self.code, self.code.fadd(self.value, other.value, flags=("contract",)))

    def __sub__(self, other: Vector) -> Vector:
        return Vector(self.code, self.code.fsub(self.value, other.value, flags=("contract",)))

    def __rmul__(self, factor: float) -> Vector:
        factors = ir.Constant(VECTOR, [float(factor)] * VECTOR_FLOATS)
        return Vector(self.code, self.code.fmul(factors, self.value, flags=("contract",)))

    def maximum(self, other: Vector) -> Vector:
        """Take the larger of two elements; NaN in this vector stays NaN."""
        smaller = self.code.fcmp_ordered("<", self.value, other.value)
        return Vector(self.code, self.code.select(smaller, other.value, self.value))


def load(code: ir.IRBuilder, pointer: ir.Value) -> Vector:
    """Read a vector from any address."""
    value = code.load(code.bitcast(pointer, VECTOR.as_pointer()))
    value.align = 4
    return Vector(code, value)


def store(vector: Vector, pointer: ir.Value) -> None:
    """Write a vector to any address."""
    code = vector.code
    code.store(vector.value, code.bitcast(pointer, VECTOR.as_pointer())).align = 4


def splat(code: ir.IRBuilder, value: ir.Value) -> Vector:
    """Copy a float into every element of a vector."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = code.insert_element(undefined, value, ir.Constant(I32, 0))
    mask = ir.Constant(ir.VectorType(I32, VECTOR_FLOATS), [0] * VECTOR_FLOATS)
    return Vector(code, code.shuffle_vector(first, undefined, mask))


def multiply_add(a: Vector, b: Vector, c: ir.Value) -> ir.Value:
    """Return a * b + c, rounded once."""
    name, module = f"llvm.fma.v{VECTOR_FLOATS}f32", a.code.module
    function = cgutils.get_or_insert_function(module, ir.FunctionType(VECTOR, [VECTOR] * 3), name)
    return a.code.call(function, [a.value, b.value, c])


def multiply_add_pairs(a: Vector, b: Vector, c: ir.Value) -> ir.Value:
    """Return c, int32, plus two products per float, each of which holds a pair of int16."""
    code = a.code

    def call(name: str, vector: ir.Type, *values: ir.Value) -> ir.Value:
        arguments = [code.bitcast(value, vector) for value in (a.value, b.value)]
        function_type = ir.FunctionType(INT32_VECTOR, [each.type for each in (*values, *arguments)])
        function = cgutils.get_or_insert_function(code.module, function_type, f"llvm.x86.{name}")
        return code.call(function, [*values, *arguments])

    if AVX512_VNNI:  # LLVM before version 22 takes the pairs as int32; later versions take both
        return call("avx512.vpdpwssd.512", INT32_VECTOR, c)
    pairs = ir.VectorType(ir.IntType(16), 2 * VECTOR_FLOATS)
    return code.add(c, call("avx512.pmaddw.d.512" if AVX512 else "avx2.pmadd.wd", pairs))


def store_int16(vector: Vector, pointer: ir.Value) -> None:
    """Write a vector, rounded to int16, to any address. NaN and values outside int16 store an unspecified number."""
    code, sixteen_bits = vector.code, ir.VectorType(ir.IntType(16), VECTOR_FLOATS)
    name = f"llvm.rint.v{VECTOR_FLOATS}f32"
    rint = cgutils.get_or_insert_function(code.module, ir.FunctionType(VECTOR, [VECTOR]), name)
    integers = code.trunc(code.fptosi(code.call(rint, [vector.value]), INT32_VECTOR), sixteen_bits)
    code.store(integers, code.bitcast(pointer, sixteen_bits.as_pointer())).align = 2


def sum_squares(code: ir.IRBuilder, pointer: ir.Value, floats: ir.Value) -> ir.Value:
    """Return the sum of the squares of some floats, whose number is a multiple of VECTOR_FLOATS."""
    total = cgutils.alloca_once_value(code, ir.Constant(VECTOR, [0.0] * VECTOR_FLOATS))
    with for_each_vector(code, floats) as at:
        values = load(code, at(pointer))
        code.store(multiply_add(values, values, code.load(total)), total)
    vector, width = code.load(total), VECTOR_FLOATS
    while width > 1:
        width //= 2
        mask = ir.Constant(
            ir.VectorType(I32, VECTOR_FLOATS), [i + width for i in range(width)] + [0] * (VECTOR_FLOATS - width)
        )
        vector = code.fadd(vector, code.shuffle_vector(vector, vector, mask))
    return code.extract_element(vector, ir.Constant(I32, 0))


def call_float(code: ir.IRBuilder, name: str, *values: ir.Value) -> ir.Value:
    """Call one of LLVM's functions of floats, such as sqrt."""
    function_type = ir.FunctionType(F32, [F32] * len(values))
    return code.call(cgutils.get_or_insert_function(code.module, function_type, f"llvm.{name}.f32"), values)


def prefetch(code: ir.IRBuilder, pointer: ir.Value) -> None:
    """Bring a cache line into the core's second-level cache."""
    name, address = "llvm.prefetch.p0i8", ir.IntType(8).as_pointer()
    function_type = ir.FunctionType(ir.VoidType(), [address, I32, I32, I32])
    function = cgutils.get_or_insert_function(code.module, function_type, name)
    read, second_level, data = (ir.Constant(I32, option) for option in (0, 2, 1))
    code.call(function, [code.bitcast(pointer, address), read, second_level, data])


def offset(code: ir.IRBuilder, pointer: ir.Value, stride: ir.Value | int, index: ir.Value | int = 1) -> ir.Value:
    """Return ``pointer + stride * index``, both in floats."""
    stride, index = (ir.Constant(I64, v) if isinstance(v, int) else v for v in (stride, index))
    return code.gep(pointer, [code.mul(stride, index)])


@contextmanager
def for_each_vector(code: ir.IRBuilder, floats: ir.Value) -> Iterator[Callable[..., ir.Value]]:
    """Write a loop over vectors; yields a function from the first one's pointer to the vector's.

    The function's second argument is the distance of two vectors in floats, where it is not VECTOR_FLOATS.
    """
    with cgutils.for_range(code, code.udiv(floats, ir.Constant(I64, VECTOR_FLOATS)), intp=I64) as loop:
        yield lambda pointer, distance=VECTOR_FLOATS: offset(code, pointer, distance, loop.index)


class Routine:
    """A function in LLVM IR, which is written once into each module that calls it.

    Args:
        arguments: One letter per argument: p, a pointer to floats; i, an int64; f, a float32.
        write: Gets the builder, the arguments and the constants, and writes the body.
        constants: Values that are known when the body is written.
    """

    def __init__(self, arguments: str, write: Callable[..., None], *constants: int) -> None:
        self.arguments, self._write, self._constants = arguments, write, constants
        self._name = "_".join([write.__name__, *map(str, constants)])

    def __call__(self, code: ir.IRBuilder, values: Sequence[ir.Value]) -> None:
        """Write a call."""
        if self._name not in code.module.globals:
            argument_types = [ARGUMENT_TYPES[letter] for letter in self.arguments]
            function = ir.Function(code.module, ir.FunctionType(ir.VoidType(), argument_types), self._name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            body = ir.IRBuilder(function.append_basic_block())
            self._write(body, *function.args, *self._constants)
            body.ret_void()
        code.call(code.module.globals[self._name], values)


def call_one(code: ir.IRBuilder, routines: Mapping[int, Routine], key: ir.Value, values: Sequence[ir.Value]) -> None:
    """Write a call of the routine with this key; where none has it, nothing is called."""
    after = code.append_basic_block()
    switch = code.switch(key, after)
    for number, routine in routines.items():
        block = code.append_basic_block()
        switch.add_case(ir.Constant(I64, number), block)
        code.position_at_end(block)
        routine(code, values)
        code.branch(after)
    code.position_at_end(after)


def write_barrier(code: ir.IRBuilder, counter: ir.Value, threads: ir.Value) -> None:
    """Wait until all threads have come here; the counter is an int64 that starts at 0 and is never reset."""
    counter = code.bitcast(counter, I64.as_pointer())
    one = ir.Constant(I64, 1)
    arrived_before = code.atomic_rmw("add", counter, one, "seq_cst")
    target = code.mul(code.add(code.udiv(arrived_before, threads), one), threads)
    spins = cgutils.alloca_once_value(code, ir.Constant(I64, 0))
    waiting, after = code.append_basic_block(), code.append_basic_block()
    code.branch(waiting)
    code.position_at_end(waiting)
    if hasattr(os, "sched_yield"):
        spun = code.add(code.load(spins), one)
        code.store(spun, spins)
        with code.if_then(code.icmp_signed(">", spun, ir.Constant(I64, SPINS_BEFORE_YIELD)), likely=False):
            code.call(cgutils.get_or_insert_function(code.module, ir.FunctionType(I32, []), "sched_yield"), [])
    all_arrived = code.icmp_signed(">=", code.load_atomic(counter, "seq_cst", 8), target)
    code.cbranch(all_arrived, after, waiting)
    code.position_at_end(after)


def numba_intrinsic(routine: Routine) -> Callable[..., Any]:
    """Make a routine callable from numba, with one tuple of its arguments; a pointer is an address."""

    def define(context: Any, values: Any) -> Any:
        argument_types = [types.float32 if letter == "f" else types.int64 for letter in routine.arguments]

        def write(context: Any, code: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> ir.Value:
            arguments = zip(routine.arguments, cgutils.unpack_tuple(code, values[0]), strict=True)
            routine(code, [code.inttoptr(value, POINTER) if letter == "p" else value for letter, value in arguments])
            return context.get_dummy_value()

        return types.void(types.Tuple(argument_types)), write

    return intrinsic(define)


@jit_inlined
def part_bounds(count: int, part: int, parts: int) -> tuple[int, int]:
    """Split a range into parts of nearly the same size; return begin and end of one part."""
    return count * part // parts, count * (part + 1) // parts


barrier = numba_intrinsic(Routine("pi", write_barrier))
