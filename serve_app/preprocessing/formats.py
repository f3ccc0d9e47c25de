"""Accepted image formats: their first bytes, their file suffixes, and what a refused file is instead."""

from __future__ import annotations

from serve_app.errors import UnsupportedImageError

# Format -> suffixes of its file names. The service detects a format from the content; suffixes choose files in folders.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC"
FIRST_BYTES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
# Brands of ISO base media files (ISO/IEC 23008-12, AVIF 1.1). "mif1" and "msf1" fit both: the primary item decides.
BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIF"),
    **dict.fromkeys((b"mif1", b"msf1"), "HEIF"),
}
# Other kinds of files that arrive as images.
OTHERS = {
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\xff\xd8": "a broken JPEG",
    b"8BPS": "a Photoshop document",
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript document",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML or SVG document",
    b"\0\0\1\0": "an icon (ICO)",
    b"\0\0\2\0": "a cursor (CUR)",
    b"IIRO": "a camera raw file (ORF)",
    b"IIU\0": "a camera raw file (RW2)",
    b"FUJIFILMCCD-RAW": "a camera raw file (RAF)",
    b"PK\3\4": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"qoif": "a QOI image",
    b"#?RADIANCE": "a Radiance HDR image",
    b"v/1\x01": "an OpenEXR image",
}
RIFF_KINDS = {b"WAVE": "a WAVE sound", b"AVI ": "an AVI video"}


def detect_format(encoded: bytes) -> str:
    """Return the key in FORMATS of an encoded image, from its first bytes.

    Raises:
        UnsupportedImageError: Another kind of file; the message names it where it is known (415).
    """
    for name, beginnings in FIRST_BYTES.items():
        if encoded.startswith(beginnings):
            return name
    if encoded.startswith(b"RIFF"):
        if encoded[8:12] == b"WEBP" or len(encoded) < 12:
            return "WEBP"
        raise _unsupported(encoded, RIFF_KINDS.get(encoded[8:12], "a RIFF file"))
    if encoded[4:8] == b"ftyp":
        end = max(16, min(int.from_bytes(encoded[:4]), len(encoded), 256))
        brands = [encoded[8:12], *(encoded[i : i + 4] for i in range(16, end, 4))]
        kinds = [BRANDS[brand] for brand in brands if brand in BRANDS]
        if not kinds:
            raise _unsupported(encoded, "a camera raw file (CR3)" if brands[0] == b"crx " else "a video or audio file")
        return "AVIF" if "AVIF" in kinds else "HEIF"
    text = encoded[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    raise _unsupported(encoded, next((what for start, what in OTHERS.items() if text.startswith(start)), None))


def _unsupported(encoded: bytes, what: str | None) -> UnsupportedImageError:
    found = f"{what}, " if what else ""
    return UnsupportedImageError(
        f"{found}not a {NAMES} image ({len(encoded)} bytes, starting with {encoded[:8]!r}); save it as PNG or JPEG"
    )
