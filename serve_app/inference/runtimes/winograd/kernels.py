"""Convolutions of a ResNet on a CPU, compiled for its vector units at the first call.

Feature maps are float32, (N, width, width, C), each with a border of zeros; weights lie in panels of PANEL output
channels. Three pieces are written in LLVM's vectors, as no compiler finds them by itself: a product of a few rows with
a panel, whose sums stay in registers, and the two maps of Winograd's F(4 x 4, 3 x 3) (Lavin and Gray 2015,
arXiv:1509.09308), which makes a tile of 4 x 4 outputs from a patch of 6 x 6 inputs with a quarter of the
multiplications. The loops around them are numba's. Nothing here takes Python's lock.

Pointers are addresses in bytes, distances are in floats. All is in one file, as numba keeps what it has compiled for as
long as the file of ``run`` does not change.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

FEATURES = binding.get_host_cpu_features()
AVAILABLE = bool(FEATURES.get("avx2") and FEATURES.get("fma"))
WIDE = bool(FEATURES.get("avx512f"))
VECTOR_FLOATS = 16 if WIDE else 8  # floats of a vector
ROWS = 8 if WIDE else 6  # of a product: their sums, two vectors each, leave registers for the factors
PANEL = 2 * VECTOR_FLOATS
TILE, PATCH = 4, 6
TILES = 32  # that a Winograd convolution does at a time: they should stay in the core's cache
STEM, DIRECT, WINOGRAD = range(3)
LINE = 16  # floats of a cache's line
SPINS = 1000  # before a thread that waits for another lets others have its core

# A convolution: from maps x to maps y, of which the first begins at an address and the next is a distance further.
CONVOLUTION = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("kind", "weight", "bias"),
            *("x", "x_apart", "x_width", "x_channels"),
            *("y", "y_apart", "y_width", "y_channels", "y_side"),
            "size",  # of a direct one's window
            "add",  # whether y is added to what it held
            "relu",
        )
    ]
)

FLOAT, INT, INDEX = ir.FloatType(), ir.IntType(64), ir.IntType(32)
VECTOR, POINTER = ir.VectorType(FLOAT, VECTOR_FLOATS), FLOAT.as_pointer()
KINDS = {"p": POINTER, "i": INT, "f": FLOAT}


def compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call and keep the outcome for the next process, where there is a folder for it."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no such folder
        return njit(nogil=True)(function)


inlined = njit(nogil=True, inline="always")


class Scratch(NamedTuple):
    """Room for one thread's own: float32, zeros at first.

    Attributes:
        image: (S + 6, S + 6, 3), an image with the stem's border.
        ring: (3, ceil(S / 2) + 2, 64), the last three lines of the stem, with a border.
        patches: (36 tiles * channels), the most that a convolution takes at a time.
        products: As many.
    """

    image: np.ndarray
    ring: np.ndarray
    patches: np.ndarray
    products: np.ndarray


class Vector:
    """A vector in code that is being written; adds and multiplies as a number does."""

    def __init__(self, code: ir.IRBuilder, value: ir.Value) -> None:
        """Name a value of the code's."""
        self.code, self.value = code, value

    def __add__(self, other: Vector) -> Vector:
        """Sum, lane by lane."""
        return Vector(self.code, self.code.fadd(self.value, other.value, flags=("contract",)))

    def __sub__(self, other: Vector) -> Vector:
        """Difference, lane by lane."""
        return Vector(self.code, self.code.fsub(self.value, other.value, flags=("contract",)))

    def __rmul__(self, factor: float) -> Vector:
        """Each lane times a number."""
        factors = ir.Constant(VECTOR, [float(factor)] * VECTOR_FLOATS)
        return Vector(self.code, self.code.fmul(factors, self.value, flags=("contract",)))

    def at_least(self, other: Vector) -> Vector:
        """The larger of two, lane by lane; what is not a number stays so."""
        smaller = self.code.fcmp_ordered("<", self.value, other.value)
        return Vector(self.code, self.code.select(smaller, other.value, self.value))


def load(code: ir.IRBuilder, pointer: ir.Value) -> Vector:
    """Read a vector, wherever it begins."""
    value = code.load(code.bitcast(pointer, VECTOR.as_pointer()))
    value.align = 4
    return Vector(code, value)


def store(vector: Vector, pointer: ir.Value) -> None:
    """Write a vector, wherever it begins."""
    code = vector.code
    code.store(vector.value, code.bitcast(pointer, VECTOR.as_pointer())).align = 4


def splat(code: ir.IRBuilder, value: ir.Value) -> Vector:
    """A float in every lane."""
    none = ir.Constant(VECTOR, ir.Undefined)
    first = code.insert_element(none, value, ir.Constant(INDEX, 0))
    return Vector(
        code, code.shuffle_vector(first, none, ir.Constant(ir.VectorType(INDEX, VECTOR_FLOATS), [0] * VECTOR_FLOATS))
    )


def multiply_add(a: Vector, b: Vector, c: ir.Value) -> ir.Value:
    """Give a * b + c, rounded once."""
    name, module = f"llvm.fma.v{VECTOR_FLOATS}f32", a.code.module
    function = cgutils.get_or_insert_function(module, ir.FunctionType(VECTOR, [VECTOR] * 3), name)
    return a.code.call(function, [a.value, b.value, c])


def prefetch(code: ir.IRBuilder, pointer: ir.Value) -> None:
    """Have a line of memory brought into the core's second cache meanwhile."""
    name, place = "llvm.prefetch.p0i8", ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [place, INDEX, INDEX, INDEX])
    function = cgutils.get_or_insert_function(code.module, kind, name)
    code.call(function, [code.bitcast(pointer, place), *(ir.Constant(INDEX, option) for option in (0, 2, 1))])


def ahead(code: ir.IRBuilder, pointer: ir.Value, floats: ir.Value | int, times: ir.Value | int = 1) -> ir.Value:
    """A pointer so many times so many floats further."""
    floats, times = (ir.Constant(INT, v) if isinstance(v, int) else v for v in (floats, times))
    return code.gep(pointer, [code.mul(floats, times)])


@contextmanager
def vectors_of(code: ir.IRBuilder, channels: ir.Value) -> Iterator[Callable[[ir.Value], ir.Value]]:
    """A loop over so many channels, a vector at a time; gives what leads from the first channel to the vector's."""
    with cgutils.for_range(code, code.udiv(channels, ir.Constant(INT, VECTOR_FLOATS)), intp=INT) as loop:
        yield lambda pointer: ahead(code, pointer, VECTOR_FLOATS, loop.index)


class Routine:
    """A function that is written in LLVM's instructions, once for each module that calls it."""

    def __init__(self, arguments: str, write: Callable[..., None], *constants: int) -> None:
        """Describe it.

        Args:
            arguments: A letter each: p, a pointer to floats; i, an int; f, a float.
            write: Takes code, the arguments and the constants, and writes the body.
            constants: Known when it is written.
        """
        self.arguments, self._write, self._constants = arguments, write, constants
        self._name = "_".join([write.__name__, *map(str, constants)])

    def __call__(self, code: ir.IRBuilder, values: Sequence[ir.Value]) -> None:
        """Write a call."""
        code.call(self._body(code.module), values)

    def _body(self, module: ir.Module) -> ir.Function:
        if self._name in module.globals:
            return module.globals[self._name]
        kinds = [KINDS[letter] for letter in self.arguments]
        made = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), self._name)
        made.linkage = "internal"
        made.attributes.add("noinline")
        code = ir.IRBuilder(made.append_basic_block())
        self._write(code, *made.args, *self._constants)
        code.ret_void()
        return made


class Product(NamedTuple):
    """Make c = max(bias + a b, least), one panel wide: the arguments of ``product`` and ``multiply``, but for the rows.

    Attributes:
        a: A row of it is some segments, of a run of floats each.
        a_row: From one row to the next.
        segments: How many a row has.
        run: How many floats each has.
        apart: From one segment to the next.
        b: A line of the panel for each float of a row.
        bias: A line of the panel.
        least: A float.
        c: The result.
        c_row: From one row to the next.
    """

    a: ir.Value
    a_row: ir.Value
    segments: ir.Value
    run: ir.Value
    apart: ir.Value
    b: ir.Value
    bias: ir.Value
    least: ir.Value
    c: ir.Value
    c_row: ir.Value


PRODUCT = "piiiippfpi"


def product(code: ir.IRBuilder, *given: Any) -> None:
    """A product of a constant number of rows, the last that is given."""
    it, rows = Product(*given[:-1]), given[-1]
    sums = [[cgutils.alloca_once(code, VECTOR) for _ in range(2)] for _ in range(rows)]
    for row in sums:
        for half, total in enumerate(row):
            code.store(load(code, ahead(code, it.bias, VECTOR_FLOATS * half)).value, total)
    panel = cgutils.alloca_once_value(code, it.b)
    size = code.mul(code.mul(it.segments, it.run), ir.Constant(INT, PANEL))
    with cgutils.for_range(code, it.segments, intp=INT) as segment:
        start = ahead(code, it.a, it.apart, segment.index)
        with cgutils.for_range(code, it.run, intp=INT) as column:
            at = code.load(panel)
            # The next panel, unless so few rows wait for memory anyway.
            for line in range(0, PANEL if rows > ROWS // 2 else 0, LINE):
                prefetch(code, ahead(code, ahead(code, at, size), line))
            factors = [load(code, ahead(code, at, VECTOR_FLOATS * half)) for half in range(2)]
            for number, row in enumerate(sums):
                factor = splat(code, code.load(ahead(code, ahead(code, start, column.index), it.a_row, number)))
                for half, total in enumerate(row):
                    code.store(multiply_add(factor, factors[half], code.load(total)), total)
            code.store(ahead(code, at, PANEL), panel)
    floor = splat(code, it.least)
    for number, row in enumerate(sums):
        for half, total in enumerate(row):
            place = ahead(code, ahead(code, it.c, it.c_row, number), VECTOR_FLOATS * half)
            store(Vector(code, code.load(total)).at_least(floor), place)


PRODUCTS = [Routine(PRODUCT, product, rows) for rows in range(1, ROWS + 1)]


def to_patch(d: Sequence[Vector]) -> list[Vector]:
    """Six inputs of a line -> the six that are multiplied with those of a filter."""
    even, odd, sums, differences = d[4] - 4 * d[2], d[3] - 4 * d[1], d[4] - d[2], 2 * (d[3] - d[1])
    first, last = 4 * d[0] - 5 * d[2] + d[4], 4 * d[1] - 5 * d[3] + d[5]
    return [first, even + odd, even - odd, sums + differences, sums - differences, last]


def to_tile(m: Sequence[Vector]) -> list[Vector]:
    """Six products of a line -> its four outputs."""
    sums, differences, far, far_differences = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [
        m[0] + sums + far,
        differences + 2 * far_differences,
        sums + 4 * far,
        differences + 8 * far_differences + m[5],
    ]


def patch(code: ir.IRBuilder, x: ir.Value, row: ir.Value, channels: ir.Value, out: ir.Value, apart: ir.Value) -> None:
    """Map the patch at x, in all channels, to 36 rows that are so far apart."""
    with vectors_of(code, channels) as at:
        lines = [
            to_patch([load(code, ahead(code, ahead(code, at(x), row, i), channels, j)) for i in range(PATCH)])
            for j in range(PATCH)
        ]
        for i in range(PATCH):
            for j, value in enumerate(to_patch([line[i] for line in lines])):
                store(value, ahead(code, at(out), apart, PATCH * i + j))


def tile(
    code: ir.IRBuilder,
    x: ir.Value,
    apart: ir.Value,
    channels: ir.Value,
    bias: ir.Value,
    out: ir.Value,
    row: ir.Value,
    pixel: ir.Value,
    height: ir.Value,
    width: ir.Value,
    add: int,
) -> None:
    """Map 36 rows to the tile at out, of which so much is inside the image; with bias and ReLU."""
    zero = Vector(code, ir.Constant(VECTOR, [0.0] * VECTOR_FLOATS))
    with vectors_of(code, channels) as at:
        lines = [
            to_tile([load(code, ahead(code, at(x), apart, PATCH * i + j)) for i in range(PATCH)]) for j in range(PATCH)
        ]
        biases = load(code, at(bias))
        for i in range(TILE):
            values = [value + biases for value in to_tile([line[i] for line in lines])]
            with code.if_then(code.icmp_signed(">", height, ir.Constant(INT, i)), likely=True):
                for j, value in enumerate(values):
                    with code.if_then(code.icmp_signed(">", width, ir.Constant(INT, j)), likely=True):
                        place = ahead(code, ahead(code, at(out), row, i), pixel, j)
                        store((value + load(code, place) if add else value).at_least(zero), place)


def pool(
    code: ir.IRBuilder, above: ir.Value, middle: ir.Value, below: ir.Value, channels: ir.Value, out: ir.Value
) -> None:
    """The largest of three pixels of each of three rows."""
    with vectors_of(code, channels) as at:
        best, *others = (
            load(code, ahead(code, at(row), channels, pixel)) for row in (above, middle, below) for pixel in range(3)
        )
        for other in others:
            best = best.at_least(other)
        store(best, at(out))


def multiply(code: ir.IRBuilder, *given: ir.Value) -> None:
    """A product of any number of rows, the last that is given, in parts that differ by one row at most."""
    it, rows = Product(*given[:-1]), given[-1]
    parts = code.udiv(code.add(rows, ir.Constant(INT, ROWS - 1)), ir.Constant(INT, ROWS))
    with cgutils.for_range(code, parts, intp=INT) as part:
        first = code.udiv(code.mul(rows, part.index), parts)
        after = code.udiv(code.mul(rows, code.add(part.index, ir.Constant(INT, 1))), parts)
        these = it._replace(a=ahead(code, it.a, it.a_row, first), c=ahead(code, it.c, it.c_row, first))
        done = code.append_basic_block()
        choice = code.switch(code.sub(after, first), done)
        for number, routine in enumerate(PRODUCTS, 1):
            block = code.append_basic_block()
            choice.add_case(ir.Constant(INT, number), block)
            code.position_at_end(block)
            routine(code, these)
            code.branch(done)
        code.position_at_end(done)


def arrive(code: ir.IRBuilder, counter: ir.Value, threads: ir.Value) -> None:
    """Wait until so many threads are here; the counter, an int64, is theirs alone and begins at zero."""
    counter = code.bitcast(counter, INT.as_pointer())
    one = ir.Constant(INT, 1)
    before = code.atomic_rmw("add", counter, one, "seq_cst")
    enough = code.mul(code.add(code.udiv(before, threads), one), threads)
    spins = cgutils.alloca_once_value(code, ir.Constant(INT, 0))
    waiting, after = code.append_basic_block(), code.append_basic_block()
    code.branch(waiting)
    code.position_at_end(waiting)
    if hasattr(os, "sched_yield"):
        spun = code.add(code.load(spins), one)
        code.store(spun, spins)
        with code.if_then(code.icmp_signed(">", spun, ir.Constant(INT, SPINS)), likely=False):
            code.call(cgutils.get_or_insert_function(code.module, ir.FunctionType(INDEX, []), "sched_yield"), [])
    here = code.icmp_signed(">=", code.load_atomic(counter, "seq_cst", 8), enough)
    code.cbranch(here, after, waiting)
    code.position_at_end(after)


def callable_in_numba(routine: Routine) -> Callable[..., Any]:
    """Make a function of it that takes addresses."""

    def define(context: Any, values: Any) -> Any:
        kinds = [types.float32 if letter == "f" else types.int64 for letter in routine.arguments]

        def write(context: Any, code: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> ir.Value:
            given = zip(routine.arguments, cgutils.unpack_tuple(code, values[0]), strict=True)
            routine(code, [code.inttoptr(value, POINTER) if letter == "p" else value for letter, value in given])
            return context.get_dummy_value()

        return types.void(types.Tuple(kinds)), write

    return intrinsic(define)


_multiply = callable_in_numba(Routine(f"{PRODUCT}i", multiply))
_patch = callable_in_numba(Routine("piipi", patch))
_tile = callable_in_numba(Routine("piippiiii", tile, 0))
_add_tile = callable_in_numba(Routine("piippiiii", tile, 1))
_pool = callable_in_numba(Routine("pppip", pool))
_arrive = callable_in_numba(Routine("pi", arrive))
NONE, ZERO = np.float32(-np.inf), np.float32(0)


@inlined
def _share(count: int, part: int, parts: int) -> tuple[int, int]:
    return count * part // parts, count * (part + 1) // parts


@inlined
def _stem(
    pixels: np.ndarray, conv: Any, number: int, line: Any, image: np.ndarray, ring: np.ndarray, part: int, parts: int
) -> None:
    """A window of 7 x 7, a stride of 2, ReLU, and the largest of 3 x 3: each line while it is in the cache."""
    side, row = len(pixels), image.shape[1] * 3
    half, wide = (side + 1) // 2, ring.shape[1] * ring.shape[2]
    begin, end = _share(conv.y_side, part, parts)
    done = max(2 * begin - 1, 0)
    for y in range(max(2 * done - 3, 0), min(2 * min(2 * end, half) + 2, side)):
        given, out = pixels[y].reshape(3 * side), image[y + 3, 3 : 3 + side].reshape(3 * side)
        for x in range(3 * side):
            out[x] = np.float32(given[x]) * line[0, x] + line[1, x]
    source, rows = image.ctypes.data, ring.ctypes.data
    y_out = conv.y + 4 * (number * conv.y_apart + conv.y_width * conv.y_channels)
    for y in range(begin, end):
        while done < min(2 * y + 2, half):
            for panel in range(0, conv.y_channels, PANEL):
                weight, bias = conv.weight + 4 * panel * 7 * 21, conv.bias + 4 * panel
                out_row = rows + 4 * (done % 3 * wide + conv.y_channels + panel)
                line_row = source + 4 * 2 * done * row
                _multiply((line_row, 6, 7, 21, row, weight, bias, ZERO, out_row, conv.y_channels, half))
            done += 1
        above, middle = rows + 4 * (max(2 * y - 1, 0) % 3 * wide), rows + 4 * (2 * y % 3 * wide)
        below = rows + 4 * (min(2 * y + 1, half - 1) % 3 * wide)
        for x in range(conv.y_side):
            from_left = 4 * 2 * x * conv.y_channels
            out = y_out + 4 * ((y * conv.y_width + x + 1) * conv.y_channels)
            _pool((above + from_left, middle + from_left, below + from_left, conv.y_channels, out))


@inlined
def _direct(conv: Any, first: int, count: int, part: int, parts: int) -> None:
    """A window of 1 or of 3 x 3, a stride of 2."""
    row, line, out_row = conv.x_width * conv.x_channels, conv.size * conv.x_channels, conv.y_width * conv.y_channels
    corner = (row + conv.x_channels) * (1 - conv.size // 2)  # of the first window
    least = ZERO if conv.relu else NONE
    begin, end = _share(conv.y_channels // PANEL, part, parts)
    for panel in range(begin * PANEL, end * PANEL, PANEL):
        weight, bias = conv.weight + 4 * panel * conv.size * line, conv.bias + 4 * panel
        for image in range(first, first + count):
            x = conv.x + 4 * (image * conv.x_apart + corner)
            y = conv.y + 4 * (image * conv.y_apart + out_row + conv.y_channels + panel)
            for _ in range(conv.y_side):
                window = (x, 2 * conv.x_channels, conv.size, line, row)
                _multiply((*window, weight, bias, least, y, conv.y_channels, conv.y_side))
                x, y = x + 4 * 2 * row, y + 4 * out_row


@inlined
def _winograd(
    conv: Any, first: int, count: int, patches: int, products: int, zeros: int, part: int, parts: int
) -> None:
    """A window of 3 x 3, a stride of 1, ReLU."""
    across = (conv.y_side + TILE - 1) // TILE
    tiles, x_channels, y_channels = across * across, conv.x_channels, conv.y_channels
    row, out_row, panels = conv.x_width * x_channels, conv.y_width * y_channels, y_channels // PANEL
    # Many tiles are shared by tiles; few, where the weights are much, by output channels.
    some, others = (parts, 1) if count * tiles >= TILES * parts else (1, parts)
    blocks = (count * tiles + TILES * some - 1) // (TILES * some) * some
    begin_block, end_block = _share(blocks, part % some, some)
    begin_panel, end_panel = _share(panels, part % others, others)
    before = 4 * begin_panel * PANEL
    channels = (end_panel - begin_panel) * PANEL
    for block in range(begin_block, end_block):
        begin, end = _share(count * tiles, block, blocks)
        held = end - begin
        for number in range(begin, end):
            image, y, x = first + number // tiles, number % tiles // across, number % across
            corner = conv.x + 4 * (image * conv.x_apart + TILE * (y * row + x * x_channels))
            _patch((corner, row, x_channels, patches + 4 * (number - begin) * x_channels, held * x_channels))
        for element in range(PATCH * PATCH):
            a = patches + 4 * element * held * x_channels
            for panel in range(begin_panel, end_panel):
                b = conv.weight + 4 * (element * panels + panel) * x_channels * PANEL
                c = products + 4 * (element * held * y_channels + panel * PANEL)
                _multiply((a, x_channels, 1, x_channels, 0, b, zeros, NONE, c, y_channels, held))
        for number in range(begin, end):
            image, y, x = first + number // tiles, number % tiles // across, number % across
            product = products + 4 * (number - begin) * y_channels + before
            inside = conv.y + 4 * (image * conv.y_apart + out_row + y_channels)
            out = inside + 4 * TILE * (y * out_row + x * y_channels) + before
            height, width = min(TILE, conv.y_side - TILE * y), min(TILE, conv.y_side - TILE * x)
            mapped = (product, held * y_channels, channels, conv.bias + before)
            if conv.add:
                _add_tile((*mapped, out, out_row, y_channels, height, width))
            else:
                _tile((*mapped, out, out_row, y_channels, height, width))


@compiled
def run(
    pixels: np.ndarray,
    convolutions: np.ndarray,
    schedule: np.ndarray,
    line: np.ndarray,
    scratch: Scratch,
    part: int,
    parts: int,
    counter: np.ndarray,
) -> None:
    """Do a part of each convolution of a schedule, with other threads that do the others at the same time.

    Args:
        pixels: uint8, (N, S, S, 3).
        convolutions: Of type CONVOLUTION.
        schedule: int64, (steps, 3): which convolution, its first image, how many images.
        line: float32, (2, 3 S): what a line of pixels is multiplied with, and what is added then.
        scratch: This thread's own.
        part: Which, from 0.
        parts: How many threads there are.
        counter: int64, (1): zero at first, theirs.
    """
    image, ring, patches, products = scratch.image, scratch.ring, scratch.patches, scratch.products
    zeros = image.ctypes.data  # the border's first, more than a panel of them
    for at in range(len(schedule)):
        conv, first, count = convolutions[schedule[at, 0]], schedule[at, 1], schedule[at, 2]
        if conv.kind == STEM:
            _stem(pixels[first], conv, first, line, image, ring, part, parts)
        elif conv.kind == DIRECT:
            _direct(conv, first, count, part, parts)
        else:
            _winograd(conv, first, count, patches.ctypes.data, products.ctypes.data, zeros, part, parts)
        if parts > 1:
            _arrive((counter.ctypes.data, parts))
