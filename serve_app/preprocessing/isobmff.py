"""Reads the boxes around an AVIF or HEIF image: which pictures its decoder would decode, and how large they are."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from serve_app.errors import ImageTooLargeError, InvalidImageError, UnsupportedImageError
from serve_app.preprocessing.bitstream import Coded, read_av1, read_hevc
from serve_app.preprocessing.limits import check_pixels

MAX_BOXES = 4096  # children of one box
MAX_ITEMS = 1000  # pictures, tiles and metadata of one file; libheif's own limit
MAX_EXTENTS = 32  # pieces of one item
PADDING_PX = 63  # encoders round the sides up to whole blocks of up to 64 pixels
MAX_PASSES = 4  # over max_pixels, by all slices, tiles, and planes of a picture together
CODED = {b"av01": "AVIF", b"hvc1": "HEIF"}
# EXIF orientation of a rotation (quarter turns anticlockwise) and then a mirror axis (ISO/IEC 23008-12, 6.5.10 and
# 6.5.12): None, 0 (top and bottom change places), 1 (left and right do).
ORIENTATIONS = {
    **{(0, None): 1, (0, 0): 4, (0, 1): 2, (1, None): 8, (1, 0): 5, (1, 1): 7},
    **{(2, None): 3, (2, 0): 2, (2, 1): 4, (3, None): 6, (3, 0): 7, (3, 1): 5},
}
Box = tuple[bytes, int, int]  # type, start and end of the body


class Picture(NamedTuple):
    """The primary picture of a file."""

    format: str  # AVIF or HEIF
    size: tuple[int, int]  # stored width and height in pixels, before the rotation
    orientation: int  # rotation and mirroring as EXIF orientation, 1-8
    patches: tuple[tuple[int, bytes], ...]  # bytes to overwrite, so that a decoder sees nothing but this picture


class _Item:
    """One picture or piece of metadata."""

    def __init__(self, kind: bytes) -> None:
        self.kind = kind
        self.extents: list[tuple[int, int]] = []  # start, end in the file
        self.properties: list[Box] = []
        self.parts: list[int] = []  # tiles of a grid
        self.length = 0  # bytes of all extents


def read_picture(encoded: bytes, max_pixels: int) -> Picture:
    """Find the primary picture, and check what its decoder would allocate.

    The sizes in the boxes may lie, so the bitstreams' own sizes are checked as well: of the picture, of a grid's tiles
    and of the alpha plane.

    Raises:
        ImageTooLargeError: The picture, or its tiles together, have too many pixels (413).
        UnsupportedImageError: Another kind of picture than one of HEVC or AV1, or a grid of such (415).
        InvalidImageError: The file is truncated or corrupt (422).
    """
    try:
        return _read_picture(encoded, max_pixels)
    except (struct.error, IndexError) as error:
        raise InvalidImageError("the image's boxes are truncated or corrupt") from error


def _read_picture(encoded: bytes, max_pixels: int) -> Picture:
    top = {kind: (kind, start, end) for kind, start, end in _boxes(encoded, 0, len(encoded))}
    if b"meta" not in top:
        if b"moov" in top:
            raise UnsupportedImageError("a video, or an image sequence without a still picture; save one frame as JPEG")
        raise InvalidImageError("starts like AVIF or HEIF, but has no picture: truncated or corrupt")
    boxes = {kind: (kind, start, end) for kind, start, end in _boxes(encoded, top[b"meta"][1] + 4, top[b"meta"][2])}
    for needed in (b"pitm", b"iinf", b"iloc", b"iprp"):
        if needed not in boxes:
            raise InvalidImageError(f"starts like AVIF or HEIF, but has no box {needed.decode()}")
    items = _read_items(encoded, boxes)
    primary_id = _id_at(encoded, boxes[b"pitm"][1] + 4, encoded[boxes[b"pitm"][1]] == 0)
    if primary_id not in items:
        raise InvalidImageError("the image's primary picture is missing")
    primary = items[primary_id]
    alphas = _read_references(encoded, boxes, items, primary_id)
    decoded = [primary, *alphas]
    decoded += [items[part] for picture in decoded for part in picture.parts]
    formats = {CODED[item.kind] for item in decoded if item.kind in CODED}
    if primary.kind not in (*CODED, b"grid") or len(formats) != 1:
        kind = primary.kind.decode("latin-1")
        raise UnsupportedImageError(f"an HEIF file whose picture is of kind {kind!r} is not supported; save it as JPEG")
    if sum(item.length for item in decoded) > len(encoded):
        raise InvalidImageError("the image's pieces overlap")
    _check_pixels(encoded, decoded, max_pixels)
    size = _declared_size(encoded, primary)
    check_pixels(size, max_pixels)
    (format_,) = formats
    patches = _patches(encoded, top, boxes, primary_id, format_)
    return Picture(format_, size, _orientation(encoded, primary), patches)


def _patches(
    data: bytes, top: dict[bytes, Box], boxes: dict[bytes, Box], primary: int, format_: str
) -> tuple[tuple[int, bytes], ...]:
    """Return the bytes that hide sequences, groups, metadata, and the other pictures.

    The decoders would copy metadata and color profiles for each picture, and take a sequence's first frame, which has
    sizes of its own, for the picture.
    """
    patches = [
        (start - 4, b"free") for kind, start, _ in (*top.values(), *boxes.values()) if kind in (b"moov", b"grpl")
    ]
    _, start, end = top[b"ftyp"]
    if format_ == "AVIF":  # libavif wants its brand, and a sequence behind the brand of sequences
        patches.append((start, b"avif" + data[start + 4 : end].replace(b"avis", b"avif")))
    if b"iref" in boxes:
        _, start, end = boxes[b"iref"]
        patches += [(body - 4, b"free") for kind, body, _ in _boxes(data, start + 4, end) if kind in (b"cdsc", b"thmb")]
    _, start, end = boxes[b"iinf"]
    for kind, body, _ in _boxes(data, start + (6 if data[start] == 0 else 8), end):
        if kind == b"infe" and data[body] >= 2 and _id_at(data, body + 4, data[body] == 2) != primary:
            patches.append((body + 3, b"\1"))  # a hidden item
    return tuple(patches)


def _boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes between two offsets."""
    for _ in range(MAX_BOXES):
        if start >= end:
            return
        size, kind = struct.unpack_from(">L4s", data, start)
        body = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        after = end if size == 0 else start + size
        if after < body or after > end:
            # What stands at the end of a file, such as maker notes behind the picture, need not be a box.
            if end == len(data) and kind not in (b"meta", b"mdat", b"ftyp"):
                return
            raise InvalidImageError(f"the image's box {kind!r} at byte {start} is truncated or corrupt")
        yield kind, body, after
        start = after
    raise InvalidImageError(f"an image with more than {MAX_BOXES} boxes; save it again")


def _id_at(data: bytes, at: int, short: bool) -> int:
    """Return the number of an item, of 2 or 4 bytes."""
    return int(struct.unpack_from(">H" if short else ">L", data, at)[0])


def _read_items(data: bytes, boxes: dict[bytes, Box]) -> dict[int, _Item]:
    """Read the kinds, places and properties of all items."""
    items: dict[int, _Item] = {}
    _, start, end = boxes[b"iinf"]
    for kind, body, _ in _boxes(data, start + (6 if data[start] == 0 else 8), end):
        if kind == b"infe" and data[body] >= 2:
            short = data[body] == 2
            items[_id_at(data, body + 4, short)] = _Item(data[body + (8 if short else 10) :][:4])
    if len(items) > MAX_ITEMS:
        raise InvalidImageError(f"an image of {len(items)} items; the limit is {MAX_ITEMS}")
    _read_places(data, boxes, items)
    _read_properties(data, boxes[b"iprp"], items)
    return items


def _read_places(data: bytes, boxes: dict[bytes, Box], items: dict[int, _Item]) -> None:
    """Read the box ``iloc`` (ISO/IEC 14496-12, 8.11.3)."""
    at = boxes[b"iloc"][1]
    version = data[at]
    sizes = data[at + 4] >> 4, data[at + 4] & 15, data[at + 5] >> 4, data[at + 5] & 15 if version else 0
    offset_size, length_size, base_size, index_size = sizes
    short = version < 2
    count = _id_at(data, at + 6, short)
    at += 8 if short else 10

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at])

    if count > MAX_ITEMS:
        raise InvalidImageError(f"an image of {count} items; the limit is {MAX_ITEMS}")
    for _ in range(count):
        item = items.get(number(2 if short else 4), _Item(b""))
        method = number(2) & 15 if version else 0
        at += 2  # data reference
        base, extents = number(base_size), number(2)
        if extents > MAX_EXTENTS or method > 1:
            raise InvalidImageError("the image is stored in too many pieces, or in other items; save it again")
        limit, shift = len(data), 0
        if method == 1:
            _, shift, limit = boxes.get(b"idat", (b"", 0, 0))
        for _ in range(extents):
            at += index_size
            start = shift + base + number(offset_size)
            end = start + number(length_size)
            if end > limit:
                raise InvalidImageError("the image is truncated: its data ends behind the end of the file")
            item.extents.append((start, end))
            item.length += end - start


def _read_properties(data: bytes, iprp: Box, items: dict[int, _Item]) -> None:
    """Read the boxes ``ipco`` and ``ipma`` (ISO/IEC 23008-12, 9.3)."""
    children = list(_boxes(data, iprp[1], iprp[2]))
    properties = [box for kind, start, end in children if kind == b"ipco" for box in _boxes(data, start, end)]
    for kind, at, _ in children:
        if kind != b"ipma":
            continue
        version, wide = data[at], data[at + 3] & 1
        (count,) = struct.unpack_from(">L", data, at + 4)
        at += 8
        for _ in range(min(count, MAX_ITEMS)):
            item = items.get(_id_at(data, at, version == 0), _Item(b""))
            at += 2 if version == 0 else 4
            associations = data[at]
            at += 1
            for _ in range(associations):
                index = struct.unpack_from(">H", data, at)[0] & 0x7FFF if wide else data[at] & 0x7F
                at += 2 if wide else 1
                if 0 < index <= len(properties):
                    item.properties.append(properties[index - 1])


def _read_references(data: bytes, boxes: dict[bytes, Box], items: dict[int, _Item], primary: int) -> list[_Item]:
    """Read the box ``iref``: give grids their tiles, and return the alpha plane and the like of the primary picture."""
    auxiliary: list[_Item] = []
    if b"iref" not in boxes:
        return auxiliary
    _, start, end = boxes[b"iref"]
    short = data[start] == 0
    word = 2 if short else 4
    for kind, body, _ in _boxes(data, start + 4, end):
        source = items.get(_id_at(data, body, short))
        (count,) = struct.unpack_from(">H", data, body + word)
        targets = [_id_at(data, body + word + 2 + word * i, short) for i in range(min(count, MAX_ITEMS))]
        if source and kind == b"dimg":
            source.parts += [target for target in targets if target in items]
        elif source and kind == b"auxl" and primary in targets:
            auxiliary.append(source)
    return auxiliary


def _declared_size(data: bytes, item: _Item) -> tuple[int, int]:
    """Return the size in the item's property ``ispe``."""
    for kind, start, _ in item.properties:
        if kind == b"ispe":
            width, height = struct.unpack_from(">LL", data, start + 4)
            return width, height
    raise InvalidImageError("the image declares no size")


def _check_pixels(data: bytes, decoded: list[_Item], max_pixels: int) -> None:
    """Refuse pictures whose bitstreams declare more pixels than a decoder may allocate, or visit them too often."""
    total = 0
    for item in decoded:
        if item.kind == b"grid":
            sizes, passes = [_grid_size(data, item)], 0
        else:
            coded = _read_coded(data, item)
            sizes, passes = [_declared_size(data, item), *coded.sizes], max(coded.passes, 1)
        pixels = max(max(width - PADDING_PX, 1) * max(height - PADDING_PX, 1) for width, height in sizes)
        if pixels > max_pixels:
            raise ImageTooLargeError(f"the image's data declares {pixels:,} pixels; the limit is {max_pixels:,}")
        total += passes * pixels
    if total > MAX_PASSES * max_pixels:
        raise ImageTooLargeError(
            f"the image's tiles, planes and slices have {total:,} pixels; the limit is {MAX_PASSES * max_pixels:,}"
        )


def _read_coded(data: bytes, item: _Item) -> Coded:
    content = memoryview(b"".join(data[start:end] for start, end in item.extents))
    configurations = {kind: data[start:end] for kind, start, end in item.properties if kind in (b"hvcC", b"av1C")}
    if item.kind == b"hvc1":
        return read_hevc(configurations.get(b"hvcC", b""), content)
    return read_av1(memoryview(configurations.get(b"av1C", b""))[4:], content)


def _grid_size(data: bytes, item: _Item) -> tuple[int, int]:
    """Return the size of a grid of tiles (ISO/IEC 23008-12, 6.6.2.3)."""
    at, end = item.extents[0]
    wide = data[at + 1] & 1
    if end - at < (12 if wide else 8) or len(item.parts) != (data[at + 2] + 1) * (data[at + 3] + 1):
        raise InvalidImageError("the image's grid of tiles is corrupt")
    width, height = struct.unpack_from(">LL" if wide else ">HH", data, at + 4)
    return width, height


def _orientation(data: bytes, item: _Item) -> int:
    """Return rotation and mirroring, which are in this order in a file, as EXIF orientation."""
    turns, axis = 0, None
    for kind, start, _ in item.properties:
        if kind == b"irot":
            turns = data[start] & 3
        elif kind == b"imir":
            axis = data[start] & 1
    return ORIENTATIONS[turns, axis]
