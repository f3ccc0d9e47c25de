"""Reads a JPEG's header without Pillow, so that broken or large metadata costs neither the picture nor time."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL import ImageChops, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from serve_app.errors import InvalidImageError, UnsupportedImageError
from serve_app.preprocessing.orientation import read_orientation

MAX_SEGMENTS = 20_000
# Without `+` for fill bytes: with it, the search takes time quadratic in their number.
SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
EOI, SOS, APP1, APP14 = 0xD9, 0xDA, 0xE1, 0xEE
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2
# Frames that libjpeg cannot decode, or decodes too slowly (ITU-T T.81, table B.1; T.87 for JPEG-LS).
UNSUPPORTED = {
    0xC3: "lossless coding",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xDE, 0xDF), "hierarchical coding"),
    **dict.fromkeys((0xC8, 0xF7), "the coding of a JPEG extension"),
    **dict.fromkeys((0xC9, 0xCA, 0xCB, 0xCC, 0xCD, 0xCE, 0xCF), "arithmetic coding"),
}
END = b"\xff\xd9"
TRIES = 3  # decodes of a JPEG without an end marker


class JpegHeader(NamedTuple):
    """What the segments of a JPEG say."""

    size: tuple[int, int]  # width, height in pixels
    layers: int  # color components
    progressive: bool
    scans: int
    adobe: bool  # an Adobe segment: CMYK values are stored inverted
    ended: bool  # the end marker is there
    orientation: int  # EXIF, 1-8


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment's body as libjpeg finds them; the end marker is the last."""
    offset = 2
    for _ in range(MAX_SEGMENTS):
        found = SEGMENT.search(encoded, offset)
        if not found:
            return
        marker, body = found[1][0], found.end()
        offset = body + int.from_bytes(encoded[body : body + 2])
        yield marker, body + 2, offset
        if marker == EOI:
            return
    raise InvalidImageError(f"a JPEG with more than {MAX_SEGMENTS} segments; save the image again")


def read_header(encoded: bytes) -> JpegHeader:
    """Read the segments of a JPEG; nothing is decoded.

    Raises:
        UnsupportedImageError: A coding or a sample layout that is not decoded (415).
        InvalidImageError: Without a frame, or with too many segments (422).
    """
    frame: tuple[int, bytes] | None = None
    scans, adobe, ended = 0, False, False
    exif = xmp = b""
    for marker, start, end in _segments(encoded):
        if marker == SOS:
            scans += 1
        elif marker == EOI:
            ended = True
        elif marker in UNSUPPORTED:
            raise UnsupportedImageError(f"a JPEG with {UNSUPPORTED[marker]} is not supported; save it as baseline JPEG")
        elif marker in SEQUENTIAL or marker == PROGRESSIVE:
            frame = frame or (marker, encoded[start:end])
        elif marker == APP14:
            adobe = adobe or encoded.startswith(b"Adobe", start)
        elif marker == APP1 and not exif and encoded.startswith(b"Exif\0\0", start):
            exif = encoded[start:end]
        elif marker == APP1 and not xmp and encoded.startswith(b"http://ns.adobe.com/xap/1.0/\0", start):
            xmp = encoded[start:end]
    if frame is None or len(frame[1]) < 6 or not scans:
        raise InvalidImageError("starts like JPEG, but has no frame and scan: its header is truncated or corrupt")
    kind, body = frame
    bits, layers = body[0], body[5]
    if bits != 8:
        raise UnsupportedImageError(f"a JPEG with {bits} bits per sample is not supported; save it with 8")
    if layers not in (1, 3, 4):
        raise UnsupportedImageError(f"a JPEG with {layers} color components is not supported; save it with 1, 3 or 4")
    size = int.from_bytes(body[3:5]), int.from_bytes(body[1:3])
    if not size[1]:
        raise UnsupportedImageError("a JPEG that declares its height behind its pixels is not supported; save it again")
    return JpegHeader(size, layers, kind == PROGRESSIVE, scans, adobe, ended, read_orientation(exif, xmp))


class JpegReader(JpegImageFile):
    """A JPEG that Pillow decodes and whose header it does not read.

    A JPEG that lacks only its end marker is decoded; see ``_load_without_end``.
    """

    def __init__(self, encoded: bytes, header: JpegHeader, retry: bool) -> None:
        """Prepare the decode; ``retry`` allows the additional decodes of a JPEG without an end marker."""
        self._encoded, self._header, self._retry = encoded, header, retry and not header.ended
        super().__init__(io.BytesIO(encoded))

    def _open(self) -> None:
        self._size = self._header.size
        self._mode = {1: "L", 3: "RGB", 4: "CMYK"}[self._header.layers]
        rawmode = "CMYK;I" if self._mode == "CMYK" and self._header.adobe else self._mode
        self.tile = [ImageFile._Tile("jpeg", (0, 0, *self._size), 0, (rawmode, ""))]

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> Any:
        """Let libjpeg decode at a fraction of the size, unless the end marker is missing: see ``load``."""
        return super().draft(mode, size) if self._header.ended else None

    def load(self) -> Any:
        """Decode; OSError where the data is truncated or corrupt."""
        try:
            return super().load()
        except OSError:
            if not self._retry or not _has_all_scans(self._encoded, self._header):
                raise
        self._load_without_end()
        return super().load()

    def _load_without_end(self) -> None:
        """Decode a JPEG whose pixels don't depend on what stands behind its last byte: only the end marker is missing.

        libjpeg fills what is missing with gray and does not tell. So the file is decoded with the end marker behind it,
        and again with random data before that marker: where coded data is missing, libjpeg takes it from there, and
        the pixels differ. The random data has restart markers, because libjpeg skips to the next one.

        Raises:
            OSError: The pixels differ.
        """
        body = self._encoded.rstrip(b"\xff")  # half an end marker
        chance = random.Random(0)
        decoded = []
        for number in range(TRIES):
            noise = b"".join(
                bytes(chance.randrange(255) for _ in range(64)) + bytes((0xFF, 0xD0 + restart % 8))
                for restart in range(16)
            )
            again = JpegReader(body + (noise if number else b"") + END, self._header, False)
            again.load()
            decoded.append(again)
            if number and ImageChops.difference(decoded[0], decoded.pop()).getbbox():
                raise OSError("image file is truncated")
        self.im, self.tile = decoded[0].im, []


def _has_all_scans(encoded: bytes, header: JpegHeader) -> bool:
    """Return whether the scans that are there code every bit of every coefficient."""
    missing: dict[int, list[int]] = {}  # component -> the lowest bit that is coded, per coefficient; 1 = not yet exact
    for marker, start, end in _segments(encoded):
        body = encoded[start:end]
        if marker != SOS or not body or len(body) < 4 + 2 * body[0]:
            continue
        first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
        for component in body[1 : 1 + 2 * body[0] : 2]:
            coded = missing.setdefault(component, [1] * 64)
            if not header.progressive:
                first, last, bits = 0, 63, 0
            coded[first : min(last, 63) + 1] = [bits & 15] * (min(last, 63) + 1 - first)
    return len(missing) == header.layers and not any(any(coded) for coded in missing.values())
