"""Picture sizes that HEVC and AV1 bitstreams declare: decoders allocate by these, not by the file around them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from serve_app.errors import InvalidImageError

HEVC_SPS = 33  # NAL unit type of a sequence parameter set (ITU-T H.265, 7.4.2.2)
HEVC_FIRST_PARAMETER_SET = 32  # smaller types are slices
AV1_SEQUENCE_HEADER = 1  # OBU type (AV1 specification, 6.2.2)
AV1_FRAMES = (3, 6)  # OBU types: frame header, frame
MAX_UNITS = 4096  # NAL units or OBUs of one item


class _Bits:
    """Reads a number of bits from bytes, the highest first."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data)
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise InvalidImageError("the image's sequence header is truncated")
        return self._bits >> self._left & ((1 << count) - 1)

    def take_golomb(self) -> int:
        """Return an unsigned Exp-Golomb number (ITU-T H.265, 9.2)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        if zeros > 32:
            raise InvalidImageError("the image's sequence header is corrupt")
        return (1 << zeros) - 1 + self.take(zeros)


class Coded(NamedTuple):
    """What a decoder would do with a bitstream."""

    sizes: list[tuple[int, int]]  # width and height of each sequence header
    passes: int  # slices or frames; each of them can visit the whole picture


def read_hevc(configuration: bytes, content: memoryview) -> Coded:
    """Read the NAL units of an ``hvcC`` box (ISO/IEC 14496-15, 8.3.3.1) and of a picture's data."""
    if len(configuration) < 23:
        raise InvalidImageError("the image's decoder configuration is truncated")
    units: list[memoryview] = []
    at = 23
    for _ in range(configuration[22]):
        count = int.from_bytes(configuration[at + 1 : at + 3])
        at = _read_units(memoryview(configuration), at + 3, 2, count, units)
    _read_units(content, 0, (configuration[21] & 3) + 1, MAX_UNITS, units)
    if len(units) > MAX_UNITS:
        raise InvalidImageError(f"an image of more than {MAX_UNITS} NAL units; save it again")
    kinds = [unit[0] >> 1 & 63 for unit in units]
    sizes = [_hevc_size(bytes(unit[:514])) for unit, kind in zip(units, kinds, strict=True) if kind == HEVC_SPS]
    return Coded(sizes, sum(kind < HEVC_FIRST_PARAMETER_SET for kind in kinds))


def _read_units(data: memoryview, at: int, length_bytes: int, count: int, units: list[memoryview]) -> int:
    """Append up to ``count`` NAL units, each behind its length; return where they end."""
    for _ in range(count):
        length = int.from_bytes(data[at : at + length_bytes])
        unit = data[at + length_bytes : at + length_bytes + length]
        if at + length_bytes >= len(data):
            break
        if len(unit):
            units.append(unit)
        at += length_bytes + length
    else:
        if count == MAX_UNITS:
            raise InvalidImageError(f"an image of more than {MAX_UNITS} NAL units; save it again")
    return at


def _hevc_size(unit: bytes) -> tuple[int, int]:
    """Return the size in a sequence parameter set (ITU-T H.265, 7.3.2.2)."""
    bits = _Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))  # without emulation prevention bytes
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 88 + 8)  # nesting, profile, level
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for profile, level in present:
        bits.take(88 * profile + 8 * level)
    bits.take_golomb()  # id
    if bits.take_golomb() == 3:  # chroma format 4:4:4
        bits.take(1)
    return bits.take_golomb(), bits.take_golomb()


def read_av1(*parts: memoryview) -> Coded:
    """Read the OBUs of AV1 data (AV1 specification, 5.3 and 5.5)."""
    sizes, frames = [], 0
    for data in parts:
        for kind, body in _av1_units(data):
            if kind == AV1_SEQUENCE_HEADER:
                sizes.append(_av1_size(_Bits(bytes(body[:256]))))
            frames += kind in AV1_FRAMES
    return Coded(sizes, frames)


def _av1_units(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type and body of each OBU."""
    at = 0
    for _ in range(MAX_UNITS):
        if at >= len(data):
            return
        header = data[at]
        at += 2 if header & 4 else 1
        length = len(data) - at
        if header & 2:
            length = 0
            for shift in range(0, 56, 7):
                if at >= len(data):
                    return
                byte = data[at]
                at += 1
                length |= (byte & 127) << shift
                if not byte & 128:
                    break
        yield header >> 3 & 15, data[at : at + length]
        at += length
    raise InvalidImageError(f"an image of more than {MAX_UNITS} OBUs; save it again")


def _av1_size(bits: _Bits) -> tuple[int, int]:
    """Return the size in a sequence header (AV1 specification, 5.5.1)."""
    bits.take(3 + 1)  # profile, still picture
    if bits.take(1):  # reduced header of a still picture
        bits.take(5)
    else:
        decoder_model, delay_bits = 0, 0
        if bits.take(1):  # timing
            bits.take(64)
            if bits.take(1):
                bits.take_golomb()
            decoder_model = bits.take(1)
            if decoder_model:
                delay_bits = bits.take(5) + 1
                bits.take(32 + 5 + 5)
        delay = bits.take(1)
        for _ in range(bits.take(5) + 1):  # operating points
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if decoder_model and bits.take(1):
                bits.take(2 * delay_bits + 1)
            if delay and bits.take(1):
                bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1
