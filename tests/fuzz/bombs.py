"""Decompression bombs: small or valid files that cost the most decode time or memory that their format allows."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

# TIFF types: code and size in bytes of the kinds used here.
SHORT, LONG = 3, 4


def save(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Return an encoded picture."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def side_of(pixels: int) -> int:
    """Return the side of the largest square with at most that many pixels."""
    return int(pixels**0.5)


def flat(mode: str, pixels: int, kind: str, **options: object) -> bytes:
    """Return a square of one color: the most pixels in the fewest bytes."""
    return save(Image.new(mode, (side_of(pixels),) * 2), kind, **options)


def noise(mode: str, pixels: int, kind: str, **options: object) -> bytes:
    """Return a square of noise: the most work per pixel for an entropy decoder."""
    shape = (side_of(pixels), side_of(pixels), len(Image.new(mode, (1, 1)).getbands()))
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return save(Image.fromarray(values.squeeze(), mode), kind, **options)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(side: int, depth: int, color: int, row_bytes: int, extra: bytes = b"", interlace: int = 0) -> bytes:
    """Return a black PNG of any depth and color type; ``extra`` are chunks before the pixels."""
    header = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, interlace)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(1 + row_bytes)) for _ in range(side)) + packer.flush()
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_of_tiny_chunks(chunks: int, kind: bytes = b"tEXt") -> bytes:
    """Return a tiny PNG whose pixels come after ``chunks`` empty chunks."""
    return png(8, 8, 2, 24, png_chunk(kind, b"") * chunks)


def png_in_tiny_pieces(pieces: int) -> bytes:
    """Return a tiny PNG whose pixels come after ``pieces`` empty IDAT chunks."""
    return png_of_tiny_chunks(pieces, b"IDAT")


def png_of_text(chunks: int) -> bytes:
    """Return a tiny PNG with compressed text chunks, each a thousand times larger once inflated."""
    text = b"a\0\0" + zlib.compress(bytes(2**20 - 1), 9)
    return png(8, 8, 2, 24, png_chunk(b"zTXt", text) * chunks)


def jpeg_segment(marker: int, body: bytes) -> bytes:
    """Return one segment of a JPEG file."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(extra: bytes, side: int = 64) -> bytes:
    """Return a JPEG with ``extra`` after its first marker."""
    return b"\xff\xd8" + extra + flat("RGB", side * side, "JPEG")[2:]


def jpeg_of_scans(side: int, scans: int, progressive: bool = True) -> bytes:
    """Return a JPEG that repeats a scan of a few bytes; each repetition makes the decoder visit every block."""
    jpeg = flat("RGB", side * side, "JPEG", progressive=progressive)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * (scans - 1) + b"\xff\xd9"


def jpeg_of_empty_scans(side: int, scans: int) -> bytes:
    """Return a baseline JPEG whose scans are headers without data."""
    jpeg = flat("RGB", side * side, "JPEG")
    at = jpeg.index(b"\xff\xda")
    header = jpeg[at : at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")]
    one = bytearray(header[:4]) + b"\x01\x01\x00\x00\x3f\x00"
    one[2:4] = struct.pack(">H", len(one) - 2)
    return jpeg[:at] + bytes(one) * scans + jpeg[at:]


def gif(width: int, height: int, before: bytes = b"", frame: tuple[int, int] | None = None) -> bytes:
    """Return a one-color GIF; ``frame`` may be larger than the screen."""
    frame = frame or (width, height)
    inner = save(Image.new("P", frame), "GIF")
    image = inner[inner.index(b",", 13) :]
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0, 0, 0) + bytes(6) + before + image


def gif_blocks(kind: int, blocks: int) -> bytes:
    """Return a GIF extension of ``blocks`` one-byte blocks."""
    return bytes((0x21, kind)) + b"\x01x" * blocks + b"\0"


def gif_extensions(count: int) -> bytes:
    """Return ``count`` empty GIF extensions."""
    return b"\x21\x01\0" * count


def bmp_rle(side: int, body: bytes, bits: int = 8) -> bytes:
    """Return a run-length encoded BMP."""
    palette = bytes(1024)
    offset = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, 1 if bits == 8 else 2, len(body), 0, 0, 256, 0)
    return head + info + palette + body


def tiff(entries: list[tuple[int, int, int, int]], tail: bytes = b"", next_ifd: int = 0) -> bytes:
    """Return a TIFF of one directory; an entry is (tag, type, count, value or offset). ``tail`` follows it."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + struct.pack("<I", next_ifd) + tail


def tiff_of(side: int, more: list[tuple[int, int, int, int]], tail: bytes = b"", compression: int = 1) -> bytes:
    """Return a grayscale TIFF; the entries ``more`` locate its pixels."""
    head = [(256, LONG, 1, side), (257, LONG, 1, side), (258, SHORT, 1, 8), (259, SHORT, 1, compression)]
    return tiff([*head, (262, SHORT, 1, 1), (277, SHORT, 1, 1), *more], tail)


def tiff_of_strips(strips: int) -> bytes:
    """Return a tiny TIFF that declares ``strips`` strips."""
    at = 8 + 2 + 12 * 9 + 4
    more = [(273, LONG, strips, at), (278, LONG, 1, 1), (279, LONG, 1, 64)]
    return tiff_of(64, more, struct.pack("<I", at) * strips)


def tiff_of_one_tile(tile: int, side: int = 64, size: int = 0) -> bytes:
    """Return a small TIFF in one deflated tile that is far larger than the picture."""
    at = 8 + 2 + 12 * 10 + 4
    packer = zlib.compressobj(9)
    row = bytes(tile)
    packed = b"".join(packer.compress(row) for _ in range(tile)) + packer.flush()
    more = [(322, LONG, 1, tile), (323, LONG, 1, tile), (324, LONG, 1, at), (325, LONG, 1, len(packed))]
    return tiff_of(side, more, packed, 8)


def tiff_of_tags(tags: int) -> bytes:
    """Return a TIFF with ``tags`` tags that all point at the same bytes."""
    picture = [(273, LONG, 1, 8), (278, LONG, 1, 8), (279, LONG, 1, 64)]
    size = 8 + 12 * (tags + 20)
    return tiff_of(8, [*picture, *((1000 + i, 7, size // 2, 8) for i in range(tags))], bytes(1000))


def turned_tiff(pixels: int) -> bytes:
    """Return a TIFF with EXIF orientation 6, which Pillow itself rotates."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return flat("RGBA", pixels, "TIFF", compression="tiff_deflate", exif=exif)


def bmp_of_masks(
    width: int, height: int, bits: int, masks: tuple[int, int, int, int], pixel: int = 0x5AA55AA5
) -> bytes:
    """Return a BMP (V5) of one color, with color masks and an alpha mask."""
    row = (pixel & ((1 << bits) - 1)).to_bytes(bits // 8, "little") * width
    data = (row + bytes(-len(row) % 4)) * height
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, bits, 3, len(data), 0, 0, 0, 0)
    header += struct.pack("<4I", *masks) + bytes(124 - 56)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(data), 0, 0, 14 + len(header)) + header + data
