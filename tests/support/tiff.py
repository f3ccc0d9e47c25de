"""Writes TIFF files of layouts that Pillow cannot write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

NUMBER_FORMATS = {"u": 1, "i": 2, "f": 3}  # numpy's kind -> SampleFormat
CODES = {1: "B", 3: "H", 4: "L", 5: "L", 11: "f", 12: "d", 16: "Q"}  # TIFF type -> struct's code
RATIONAL = 5
Tag = tuple[int, int, tuple[float, ...]]  # tag, type, values


def make_tiff(
    pixels: np.ndarray,
    color: int = 1,
    order: str = "<",
    *,
    big: bool = False,
    deflate: bool = False,
    predictor: int = 1,
    tile: int = 0,
    planar: bool = False,
    extra: int | None = None,
    tags: tuple[Tag, ...] = (),
    remove: tuple[int, ...] = (),
) -> bytes:
    """Return a TIFF of (height, width) or (height, width, samples) numbers.

    Args:
        pixels: Samples in the type that the file stores.
        color: PhotometricInterpretation: 0 white is zero, 1 black is zero, 2 RGB.
        order: ``<`` little-endian, ``>`` big-endian.
        big: BigTIFF.
        deflate: Compressed with zlib; otherwise not.
        predictor: 2 differences, 3 differences of floats' bytes.
        tile: Side of square tiles; 0 stores strips of 16 rows.
        planar: Store each channel separately.
        extra: ExtraSamples of the last channel: 0 unspecified, 1 premultiplied, 2 alpha.
        tags: Further tags, or others for these.
        remove: Tags to leave out.
    """
    samples = pixels.reshape(*pixels.shape[:2], -1)
    height, width, channels = samples.shape
    planes = [samples[..., i : i + 1] for i in range(channels)] if planar else [samples]
    pieces = [
        _encode(piece, order, predictor, deflate)
        for plane in planes
        for piece in (_tiles(plane, tile) if tile else _strips(plane))
    ]
    kind = NUMBER_FORMATS[samples.dtype.kind]
    entries: dict[int, tuple[int, tuple[float, ...]]] = {
        256: (4, (width,)),
        257: (4, (height,)),
        258: (3, (8 * samples.dtype.itemsize,) * channels),
        259: (3, (8 if deflate else 1,)),
        262: (3, (color,)),
        277: (3, (channels,)),
        284: (3, (2 if planar else 1,)),
        339: (3, (kind,) * channels),
    }
    entries |= {317: (3, (predictor,))} if predictor > 1 else {}
    entries |= {338: (3, (extra,))} if extra is not None else {}
    entries |= {322: (3, (tile,)), 323: (3, (tile,))} if tile else {278: (3, (16,))}
    entries |= {tag: (code, values) for tag, code, values in tags}
    start = 16 if big else 8
    offsets = [start + sum(len(piece) for piece in pieces[:i]) for i in range(len(pieces))]
    entries |= {324 if tile else 273: (4, tuple(offsets)), 325 if tile else 279: (4, tuple(map(len, pieces)))}
    entries = {tag: entry for tag, entry in sorted(entries.items()) if tag not in remove}
    data = b"".join(pieces)
    data += bytes(len(data) % 2)
    at = start + len(data)
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(f"{order}HHHQ", 43, 8, 0, at) if big else struct.pack(f"{order}HL", 42, at)
    return head + data + _directory(entries, order, big, at)


def _directory(entries: Mapping[int, tuple[int, tuple[float, ...]]], order: str, big: bool, at: int) -> bytes:
    word, count = ("Q", "Q") if big else ("L", "H")
    size = struct.calcsize(f"={word}")
    entry_size = 4 + 2 * size
    after = at + struct.calcsize(f"={count}") + entry_size * len(entries) + size
    table, values = struct.pack(order + count, len(entries)), b""
    for tag, (code, numbers) in entries.items():
        parts = [part for number in numbers for part in (int(number), 1)] if code == RATIONAL else numbers
        stored = struct.pack(f"{order}{len(parts)}{CODES[code]}", *parts)
        if len(stored) > size:
            place = struct.pack(order + word, after + len(values))
            values += stored + bytes(len(stored) % 2)
        else:
            place = stored.ljust(size, b"\0")
        table += struct.pack(f"{order}HH{word}", tag, code, len(numbers)) + place
    return table + bytes(size) + values


def _strips(plane: np.ndarray) -> Iterator[np.ndarray]:
    for top in range(0, len(plane), 16):
        yield plane[top : top + 16]


def _tiles(plane: np.ndarray, side: int) -> Iterator[np.ndarray]:
    height, width = plane.shape[:2]
    padded = np.pad(plane, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield padded[top : top + side, left : left + side]


def _encode(piece: np.ndarray, order: str, predictor: int, deflate: bool) -> bytes:
    if predictor == 2:
        bits = piece.view(f"u{piece.dtype.itemsize}")
        piece = np.diff(bits, axis=1, prepend=np.zeros_like(bits[:, :1]))
    if predictor == 3:  # Adobe Photoshop TIFF Technical Note 3: bytes by significance, then their differences
        rows = np.ascontiguousarray(piece.astype(piece.dtype.newbyteorder(">"))).view(np.uint8)
        rows = rows.reshape(len(piece), -1, piece.dtype.itemsize).transpose(0, 2, 1).reshape(len(piece), -1)
        data = np.diff(rows, axis=1, prepend=np.zeros_like(rows[:, :1])).tobytes()
    else:
        data = piece.astype(piece.dtype.newbyteorder(order)).tobytes()
    return zlib.compress(data) if deflate else data
