"""Reads a PNG's chunks without Pillow, so that broken or large metadata costs neither the picture nor time."""

from __future__ import annotations

import io
import zlib
from typing import NamedTuple

from PIL import ImageFile, ImagePalette

from serve_app.errors import InvalidImageError, UnsupportedImageError
from serve_app.preprocessing.orientation import read_orientation

MAX_CHUNKS = 25_000  # a 20 MB file in libpng's pieces of 8 kB has 2500
BLOCK_BYTES = 64 * 1024  # given to the decoder at once
MAX_PROFILE_BYTES = 256 * 1024  # inflated EXIF in a text chunk
# (bits, color type) -> Pillow's mode and raw mode (PNG specification, table 11.1).
MODES = {
    **{(1, 0): ("1", "1"), (2, 0): ("L", "L;2"), (4, 0): ("L", "L;4"), (8, 0): ("L", "L"), (16, 0): ("I;16", "I;16B")},
    **{(8, 2): ("RGB", "RGB"), (16, 2): ("RGB", "RGB;16B")},
    **{(1, 3): ("P", "P;1"), (2, 3): ("P", "P;2"), (4, 3): ("P", "P;4"), (8, 3): ("P", "P")},
    **{(8, 4): ("LA", "LA"), (16, 4): ("RGBA", "LA;16B"), (8, 6): ("RGBA", "RGBA"), (16, 6): ("RGBA", "RGBA;16B")},
}
PROFILE = b"Raw profile type exif\0"  # ImageMagick's form of EXIF


class PngHeader(NamedTuple):
    """What the chunks of a PNG say; pieces are views of the file."""

    size: tuple[int, int]  # width, height in pixels
    bits: int
    color: int  # color type: 0 gray, 2 RGB, 3 palette, 4 gray + alpha, 6 RGB + alpha
    interlaced: bool
    palette: bytes
    transparency: bytes  # tRNS
    pieces: tuple[memoryview, ...]  # of the compressed pixels
    orientation: int  # EXIF, 1-8


def read_header(encoded: bytes) -> PngHeader:
    """Find the chunks that decoding needs.

    As in libpng, a checksum error in another chunk drops that chunk, and one in these chunks is an error.

    Raises:
        InvalidImageError: A chunk that decoding needs is broken or missing, or there are too many (422).
        UnsupportedImageError: Apple's variant (415).
    """
    file = memoryview(encoded)
    chunks: dict[bytes, memoryview] = {}
    pieces: list[memoryview] = []
    offset, previous = 8, b""
    for _ in range(MAX_CHUNKS):
        length, kind = int.from_bytes(file[offset : offset + 4]), bytes(file[offset + 4 : offset + 8])
        if len(kind) < 4 or kind == b"IEND" or (pieces and not kind.isalpha()):
            break
        body = file[offset + 8 : offset + 8 + length]
        intact = zlib.crc32(file[offset + 4 : offset + 8 + length]) == int.from_bytes(
            file[offset + 8 + length : offset + 12 + length]
        )
        if kind == b"CgBI":
            raise UnsupportedImageError("a PNG in Apple's CgBI variant is not supported; save it as an ordinary PNG")
        if not kind.isalpha() or (kind in (b"IHDR", b"PLTE") and not intact):
            raise InvalidImageError(f"the PNG's chunk {kind!r} at byte {offset} is corrupt")
        if kind == b"IDAT":
            if not intact and len(body) == length:
                raise InvalidImageError(f"the PNG's pixels are corrupt (checksum of the chunk at byte {offset})")
            if not pieces or previous == b"IDAT":
                pieces.append(body)
        elif kind in (b"tEXt", b"zTXt"):
            if intact and bytes(body[: len(PROFILE)]) == PROFILE:
                chunks.setdefault(kind, body[len(PROFILE) :])
        elif intact:
            chunks.setdefault(b"XMP" if bytes(body[:18]) == b"XML:com.adobe.xmp\0" else kind, body)
        offset, previous = offset + 12 + length, kind
    else:
        raise InvalidImageError(f"a PNG with more than {MAX_CHUNKS} chunks; save the image again")
    ihdr = chunks.get(b"IHDR", b"")
    if len(ihdr) < 13 or not pieces:
        raise InvalidImageError("starts like PNG, but its header is truncated or corrupt, or it has no pixels")
    bits, color, compression, filtering, interlaced = ihdr[8:13]
    if (bits, color) not in MODES or compression or filtering:
        raise InvalidImageError(f"the PNG's header is corrupt ({bits} bits, color type {color})")
    palette, transparency = (bytes(chunks.get(kind, b"")) for kind in (b"PLTE", b"tRNS"))
    if color == 3 and not palette:
        raise InvalidImageError("the PNG has no palette")
    exif = chunks.get(b"eXIf") or _inflated_profile(chunks)
    orientation = read_orientation(exif, chunks.get(b"XMP", b""))
    size = int.from_bytes(ihdr[:4]), int.from_bytes(ihdr[4:8])
    return PngHeader(size, bits, color, bool(interlaced), palette, transparency, tuple(pieces), orientation)


def _inflated_profile(chunks: dict[bytes, memoryview]) -> bytes:
    """Return the EXIF that ImageMagick stores as hexadecimal text."""
    try:
        if b"zTXt" in chunks:
            text = zlib.decompressobj().decompress(chunks[b"zTXt"][1:], MAX_PROFILE_BYTES)
        else:
            text = bytes(chunks.get(b"tEXt", b"")[:MAX_PROFILE_BYTES])
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("latin-1"))
    except (zlib.error, ValueError):
        return b""


class PngReader(ImageFile.ImageFile):
    """A PNG that Pillow's decoder inflates and whose chunks Pillow does not read.

    Attributes:
        transparent: The gray value or the RGB values of transparent pixels of an image with 16 bits per sample.
    """

    format = "PNG"

    def __init__(self, header: PngHeader, low_bytes: bool = False) -> None:
        """Prepare the decode; ``low_bytes`` decodes the lower byte of 16-bit RGB, where Pillow takes the upper."""
        self._header, self._low_bytes = header, low_bytes
        blocks = (piece[at : at + BLOCK_BYTES] for piece in header.pieces for at in range(0, len(piece), BLOCK_BYTES))
        self._blocks = blocks
        self.transparent: tuple[int, ...] | None = None
        super().__init__(io.BytesIO())

    def _open(self) -> None:
        header = self._header
        self._size = header.size
        self._mode, rawmode = MODES[header.bits, header.color]
        self.tile = [ImageFile._Tile("zip", (0, 0, *self._size), 0, "RGB;16L" if self._low_bytes else rawmode)]
        if header.interlaced:
            self.decoderconfig = (1,)
        if self._mode == "P":
            self.palette = ImagePalette.raw("RGB", header.palette)
        if header.transparency and header.color in (0, 2, 3) and not self._low_bytes:
            self._set_transparency(header)

    def _set_transparency(self, header: PngHeader) -> None:
        values = header.transparency
        if header.color == 3:
            # Pillow converts a palette with one transparent color faster than one with a value for each color.
            one = values.strip(b"\xff") == b"\0"
            self.info["transparency"] = values.index(0) if one else values
            return
        count = 3 if header.color == 2 else 1
        if len(values) < 2 * count:
            return
        numbers = tuple(int.from_bytes(values[2 * i : 2 * i + 2]) for i in range(count))
        if header.bits == 16:
            self.transparent = numbers
        else:
            # Gray of 1, 2 and 4 bits is decoded to 0-255.
            levels = (1 << header.bits) - 1
            scaled = tuple((number & levels) * 255 // levels for number in numbers)
            self.info["transparency"] = scaled if count == 3 else scaled[0]

    def load_seek(self, pos: int) -> None:
        """Do nothing: the pieces are read in their order."""

    def load_read(self, read_bytes: int) -> bytes:
        """Return the next blocks, together at least ``read_bytes``; b"" at the end."""
        parts, size = [], 0
        for block in self._blocks:
            parts.append(block)
            size += len(block)
            if size >= read_bytes:
                break
        return b"".join(parts)

    def low_bytes(self) -> PngReader:
        """Return the lower bytes of 16-bit RGB as an image."""
        return PngReader(self._header, low_bytes=True)
