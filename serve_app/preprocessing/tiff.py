"""Reads a TIFF's first directory without Pillow, and gives Pillow and libtiff a directory of only what they need."""

from __future__ import annotations

import io
import struct
from typing import Any, NamedTuple, cast

from PIL import TiffImagePlugin
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from serve_app.errors import ImageTooLargeError, InvalidImageError, UnsupportedImageError
from serve_app.preprocessing.depth import Samples
from serve_app.preprocessing.limits import check_pixels
from serve_app.preprocessing.orientation import read_orientation

# Pillow's own reader of uncompressed TIFF mixes up planes of 16 bits and subsampled YCbCr; libtiff reads both.
TiffImagePlugin.READ_LIBTIFF = True
MAX_STRIPS = 20_000  # strips or tiles
MAX_VALUES = 64  # of other tags
MAX_ENTRIES = 65_535
COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)  # none, fax, LZW, JPEG, deflate, PackBits; bounded in libtiff
FAX = (2, 3, 4)
WIDTH, HEIGHT, BITS, COMPRESSION, COLORS, ORIENTATION, CHANNELS = 256, 257, 258, 259, 262, 274, 277
STRIPS, TILES, TILE_WIDTH, TILE_HEIGHT, PLANES, PREDICTOR, EXTRA, FORMAT = 273, 324, 322, 323, 284, 317, 338, 339
LARGEST, BLACK, WHITE, XMP = 281, 340, 341, 700
# Tag -> the largest number of values. The numbers are rows per strip, byte counts, fill order, fax options, YCbCr,
# JPEG tables and the color map.
KEPT = {
    **dict.fromkeys((WIDTH, HEIGHT, COMPRESSION, COLORS, CHANNELS, PLANES, PREDICTOR, TILE_WIDTH, TILE_HEIGHT), 1),
    **dict.fromkeys((266, 278, 292, 293, 332), 1),
    **dict.fromkeys((BITS, EXTRA, FORMAT, 529, 530, 531, 532), MAX_VALUES),
    **dict.fromkeys((STRIPS, TILES, 279, 325), MAX_STRIPS),
    **{320: 3 * 65_536, 347: 65_536},
}
READ = {**KEPT, **dict.fromkeys((ORIENTATION, LARGEST, BLACK, WHITE), MAX_VALUES), XMP: 1 << 18}
# TIFF type -> bytes and struct's code of one value; the codes that are missing are not needed as numbers.
TYPES = {
    1: (1, "B"),
    2: (1, ""),
    3: (2, "H"),
    4: (4, "L"),
    5: (8, ""),
    6: (1, "b"),
    7: (1, "B"),
    8: (2, "h"),
    9: (4, "l"),
}
TYPES |= {10: (8, ""), 11: (4, "f"), 12: (8, "d"), 13: (4, "L"), 16: (8, "Q"), 17: (8, "q"), 18: (8, "Q")}
INTEGER, SIGNED, FLOAT = 1, 2, 3
NUMBERS = {INTEGER: "u", 4: "u", SIGNED: "i", FLOAT: "f"}  # SampleFormat -> numpy's kind
COLOR_NAMES = {
    0: "grayscale",
    1: "grayscale",
    2: "RGB",
    3: "palette",
    5: "CMYK",
    6: "YCbCr",
    8: "Lab",
    32803: "camera raw",
}
FORMAT_NAMES = {INTEGER: "", SIGNED: "signed ", FLOAT: "float ", 5: "complex ", 6: "complex "}
MAX_PIXEL_BYTES = 8  # of samples that become one band of numbers; the memory bound of a decode rests on it


class TiffTags(NamedTuple):
    """The first directory: the entries as they are stored, and the values of those that matter here."""

    order: str  # struct's sign of the byte order
    big: bool  # BigTIFF: 64-bit offsets
    entries: dict[int, tuple[int, int, bytes]]  # tag -> type, count, value or offset
    values: dict[int, tuple[Any, ...]]

    def one(self, tag: int, default: int) -> int:
        """Return the first value of a tag as an integer."""
        value = self.values.get(tag, (default,))[0]
        return value if isinstance(value, int) else default


def read_tags(encoded: bytes) -> TiffTags:
    """Read the first directory; other tags than READ are skipped whatever they hold.

    Raises:
        InvalidImageError: The directory or a needed tag is broken or too long (422).
    """
    order, big = ("<" if encoded[:2] == b"II" else ">"), encoded[2:4] in (b"+\0", b"\0+")
    long, entry = ("Q", f"{order}HHQ8s") if big else ("L", f"{order}HHL4s")
    word = 8 if big else 4
    values: dict[int, tuple[Any, ...]] = {}
    entries: dict[int, tuple[int, int, bytes]] = {}
    try:
        (start,) = struct.unpack_from(order + long, encoded, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), encoded, start)
        start += 8 if big else 2
        end = start + min(count, MAX_ENTRIES) * struct.calcsize(entry)
        if end > len(encoded):
            raise InvalidImageError("starts like TIFF, but its directory is truncated")
        for tag, kind, count, value in struct.iter_unpack(entry, encoded[start:end]):
            size, code = TYPES.get(kind, (0, ""))
            if tag not in READ or tag in entries or not size or not count or (tag == XMP and kind not in (1, 7)):
                continue
            if count > READ[tag]:
                if tag not in KEPT:
                    continue
                raise InvalidImageError(f"a TIFF with {count} values of tag {tag}; the limit is {READ[tag]}")
            at = 0 if count * size <= word else struct.unpack(order + long, value)[0]
            values[tag] = struct.unpack_from(f"{order}{count}{code}", encoded if at else value, at) if code else ()
            entries[tag] = kind, count, value
    except (struct.error, OverflowError) as error:
        raise InvalidImageError("starts like TIFF, but its directory is truncated or corrupt") from error
    return TiffTags(order, big, entries, {tag: found for tag, found in values.items() if found})


def open_tiff(encoded: bytes, max_pixels: int) -> tuple[ImageFile, Samples | None, int]:
    """Open the first image.

    Returns:
        The image, how to read its samples where Pillow decodes them as plain numbers, and the EXIF orientation.

    Raises:
        UnsupportedImageError: A compression or a sample layout that is not decoded (415).
        ImageTooLargeError: Too many pixels, or tiles that cover too many (413).
        InvalidImageError: The directory is broken (422).
    """
    tags = read_tags(encoded)
    width, height = tags.one(WIDTH, 0), tags.one(HEIGHT, 0)
    if width <= 0 or height <= 0:
        raise InvalidImageError(f"the TIFF's header is corrupt ({width} x {height} pixels)")
    check_pixels((width, height), max_pixels)
    compression = tags.one(COMPRESSION, 1)
    if compression not in COMPRESSIONS:
        raise UnsupportedImageError(f"a TIFF with compression {compression} is not supported; save it with LZW")
    _check_tiles(tags, width, height, max_pixels)
    if not 0 < tags.one(CHANNELS, 1) <= TiffImagePlugin.MAX_SAMPLESPERPIXEL:
        raise _unsupported(tags)
    samples, changes = _samples(tags, compression, max_pixels)
    if COLORS not in tags.values:  # libtiff's rule: gray with 0 = black, but fax with 0 = white
        changes.setdefault(COLORS, 0 if compression in FAX else 2 if tags.one(CHANNELS, 1) > 2 else 1)
    orientation = tags.one(ORIENTATION, 0) or read_orientation(b"", bytes(tags.values.get(XMP, ())))
    try:
        image = _TiffReader(_with_directory(encoded, tags, changes))
    except SyntaxError as error:
        raise _unsupported(tags) from error
    return image, samples, orientation if orientation in range(1, 9) else 1


def _check_tiles(tags: TiffTags, width: int, height: int, max_pixels: int) -> None:
    """Refuse tiles that are much larger than the image, because libtiff allocates complete tiles."""
    pixels = 1
    for side, tile in ((width, tags.one(TILE_WIDTH, 0)), (height, tags.one(TILE_HEIGHT, 0))):
        pixels *= -(-side // tile) * tile if tile > 0 else side
    if pixels > 2 * max_pixels:
        raise ImageTooLargeError(f"the TIFF's tiles cover {pixels:,} pixels; the limit for tiles is {2 * max_pixels:,}")


def _samples(tags: TiffTags, compression: int, max_pixels: int) -> tuple[Samples | None, dict[int, int]]:
    """Choose how to decode gray of more than 8 bits, floats and signed numbers.

    Pillow knows few of these layouts and takes white as black, unsigned for signed and 12 bits for 16 in some. So they
    are declared to it as a gray image of plain numbers, as many per row as there are samples; what they mean is applied
    afterwards.

    Returns:
        How to read the numbers, and the tags to change; None and nothing where Pillow reads the image as it is.
    """
    bits, numbers = tags.values.get(BITS, (1,)), tags.values.get(FORMAT, (INTEGER,))
    color, channels = tags.one(COLORS, 1), tags.one(CHANNELS, 1)
    extra = tags.values.get(EXTRA, ())
    gray, depth, number = color in (0, 1), bits[0], numbers[0]
    if gray and channels == 1 and depth == 12 and number == INTEGER and len(bits) == 1:
        return _declared("u2", tags, white=4095.0), {COLORS: 1}  # Pillow unpacks 12 bits
    plain = number in (INTEGER, 4)
    if (plain and depth <= 8) or (plain and not gray and depth == 16) or color not in (0, 1, 2):
        return None, {}
    expected = (1 if gray else 3) + len(extra)
    kind = f"{NUMBERS.get(number, '')}{depth // 8}"
    known = kind in ("u2", "i2", "f2", "i1", "u4", "i4", "f4", "u8", "i8", "f8")
    uniform = len(set(bits)) == 1 == len(set(numbers)) and channels == expected and len(extra) <= 1
    simple = channels == 1 and depth < 64
    if not known or not uniform or (not simple and (tags.one(PLANES, 1) != 1 or tags.one(PREDICTOR, 1) != 1)):
        raise _unsupported(tags)
    if compression not in (1, 5, 8, 32773, 32946) or (tags.one(PREDICTOR, 1) == 3 and kind != "f4"):
        raise _unsupported(tags)
    width, height = tags.one(WIDTH, 0), tags.one(HEIGHT, 0)
    if width * height * channels * depth // 8 > MAX_PIXEL_BYTES * max_pixels:
        raise ImageTooLargeError(
            f"a TIFF of {width} x {height} pixels with {channels} samples of {depth} bits is too large; save it with 8"
        )
    words = channels * (2 if depth == 64 else 1)
    changes = {COLORS: 1, CHANNELS: 1, BITS: min(depth, 32), WIDTH: width * words, EXTRA: 0, FORMAT: INTEGER}
    if depth >= 32:
        changes[FORMAT] = FLOAT if kind == "f4" else SIGNED
    if TILE_WIDTH in tags.values:
        changes[TILE_WIDTH] = tags.one(TILE_WIDTH, 0) * words
    samples = _declared(kind, tags)
    alpha = bool(extra) and extra[0] in (1, 2)
    swapped = depth == 64 and tags.order == ">"  # libtiff orders the bytes in each number of 32 bits
    return samples._replace(channels=channels, alpha=alpha, high_word_first=swapped), changes


def _declared(kind: str, tags: TiffTags, white: float | None = None) -> Samples:
    """Return the range that the tags declare; libtiff's names are SMinSampleValue, SMaxSampleValue, MaxSampleValue."""
    black = None if white is None else 0.0
    low, high = tags.values.get(BLACK, ()), tags.values.get(WHITE, ())
    if high:
        declared = float(min(low)) if low else 0.0, float(max(high))
        if all(abs(value) < float("inf") for value in declared) and declared[0] < declared[1]:
            black, white = declared
    largest = max(tags.values.get(LARGEST, (0,)))
    inverted = tags.one(COLORS, 1) == 0
    return Samples(kind, inverted=inverted, black=black, white=white, largest=float(largest) if largest else None)


def _with_directory(encoded: bytes, tags: TiffTags, changes: dict[int, int]) -> bytes:
    """Return the file with a directory of the tags in KEPT, some of them changed, and no further images behind it."""
    long, entry = ("Q", f"{tags.order}HHQ8s") if tags.big else ("L", f"{tags.order}HHL4s")
    kept = {tag: stored for tag, stored in tags.entries.items() if tag in KEPT}
    for tag, value in changes.items():
        kept[tag] = 4, 1, struct.pack(f"{tags.order}L", value)
    if changes.get(EXTRA) == 0:
        kept.pop(EXTRA)
    directory = struct.pack(tags.order + ("Q" if tags.big else "H"), len(kept))
    for tag in sorted(kept):
        directory += struct.pack(entry, tag, *kept[tag])
    directory += struct.pack(tags.order + long, 0)
    head = 8 if tags.big else 4
    body = encoded[head + struct.calcsize(f"={long}") :]
    body += bytes(len(encoded) % 2)  # directories begin at even offsets
    start = head + struct.calcsize(f"={long}") + len(body)
    return encoded[:head] + struct.pack(tags.order + long, start) + body + directory


def _unsupported(tags: TiffTags) -> UnsupportedImageError:
    bits = tags.values.get(BITS, (1,))
    color = tags.one(COLORS, 1)
    number = FORMAT_NAMES.get(tags.one(FORMAT, INTEGER), "unknown ")
    planes = " in separate planes" if tags.one(PLANES, 1) == 2 else ""
    return UnsupportedImageError(
        f"a TIFF with {tags.one(CHANNELS, 1)} {number}samples of {'/'.join(str(b) for b in dict.fromkeys(bits))} bits "
        f"({COLOR_NAMES.get(color, f'color space {color}')}){planes} is not supported; "
        "save it as RGB or grayscale with 8 or 16 bits"
    )


class _TiffReader(TiffImageFile):
    """A TIFF with a directory of this module. Pillow asks for big-endian numbers, but libtiff gives native ones."""

    def __init__(self, encoded: bytes) -> None:
        super().__init__(io.BytesIO(encoded))

    def _setup(self) -> None:
        super()._setup()
        for index, tile in enumerate(self.tile):
            rawmode, *rest = cast("tuple[Any, ...]", tile.args)
            native = rawmode.replace(";32BF", ";32NF").replace(";32BS", ";32NS")
            self.tile[index] = tile._replace(args=(native, *rest))
