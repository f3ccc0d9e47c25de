"""AVIF and HEIC: decoded as the other formats are, within the same bounds."""

from __future__ import annotations

import random
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from serve_app.errors import ImageTooLargeError, InvalidImageError, ServiceError, UnsupportedImageError
from serve_app.model_card import ImageTransform
from serve_app.preprocessing import heif
from serve_app.preprocessing.isobmff import read_picture
from serve_app.preprocessing.transform import preprocess
from tests.fuzz.mutate import mutate
from tests.support.photos import STORED, encode, encode_heic_16, encode_heic_grid, make_picture
from tests.support.weights import MEAN, STD

SQUARE = ImageTransform(resize_px=96, crop_px=96, mean=MEAN, std=STD)
LIMIT = 10_000_000
PICTURE = make_picture(320, 240)
KINDS = ("AVIF", "HEIF")
FILES = {kind: encode(PICTURE, kind) for kind in KINDS}


def pixels(encoded: bytes, max_pixels: int = LIMIT) -> np.ndarray:
    return preprocess(encoded, SQUARE, max_pixels).pixels.astype(float)


PLAIN = pixels(encode(PICTURE, "PNG"))


def difference(encoded: bytes) -> float:
    return float(np.abs(pixels(encoded) - PLAIN).mean())


def replaced(encoded: bytes, box: bytes, body: bytes, skip: int = 0) -> bytes:
    """Return the file with other bytes in each box of that type, behind ``skip`` bytes of its body."""
    changed = bytearray(encoded)
    at = changed.find(box)
    while at >= 0:
        changed[at + 4 + skip : at + 4 + skip + len(body)] = body
        at = changed.find(box, at + 4)
    return bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_applied_once(orientation: int, kind: str) -> None:
    """Rotation and mirroring are reported as EXIF orientation; AVIF's decoder leaves them to us, HEIC's does not."""
    how = STORED[orientation]
    stored = PICTURE.transpose(how) if how is not None else PICTURE
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(stored, kind, exif=exif.tobytes())
    info = preprocess(encoded, SQUARE, LIMIT).info
    assert (info.format, info.width, info.height, info.orientation) == (kind.lower(), *stored.size, orientation)
    assert difference(encoded) < 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_picture_counts(kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(pixels(encoded)[48, 48] - (255, 0, 0)).max() < 6


@pytest.mark.parametrize("kind", KINDS)
def test_gray_and_transparent_pictures(kind: str) -> None:
    assert np.abs(pixels(encode(Image.new("L", (64, 64), 77), kind)) - 77).max() < 3
    assert np.abs(pixels(encode(Image.new("RGBA", (64, 64), (0, 0, 0, 128)), kind)) - 127).max() < 4


def test_tiles_and_more_bits() -> None:
    assert difference(encode_heic_grid(PICTURE)) < 4
    deep = np.asarray(PICTURE).astype(np.uint16) * 257
    assert difference(encode_heic_16(deep)) < 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_generic_brand_is_enough(kind: str) -> None:
    """The primary picture decides, not the brand."""
    encoded = FILES[kind]
    at = 4 + 4
    brands = b"mif1" + bytes(4) + b"mif1" * ((int.from_bytes(encoded[:4]) - 16) // 4)
    generic = encoded[:at] + brands + encoded[at + len(brands) :]
    assert read_picture(generic, LIMIT).format == kind
    assert difference(generic) < 4


@pytest.mark.parametrize("encoded", [*FILES.values(), encode_heic_grid(PICTURE)], ids=[*KINDS, "grid"])
def test_cut_files_are_invalid(encoded: bytes) -> None:
    """libde265 alone conceals what is missing."""
    for keep in (*range(12, len(encoded), 211), len(encoded) - 1):
        with pytest.raises(InvalidImageError):
            pixels(encoded[:keep])


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_on_pixels_holds_whatever_the_boxes_say(kind: str) -> None:
    """The size in the box ``ispe`` lies, so the decoder would allocate by the bitstream's size."""
    with pytest.raises(ImageTooLargeError, match="limit is 70,000"):
        pixels(FILES[kind], 70_000)
    lying = replaced(FILES[kind], b"ispe", struct.pack(">LL", 64, 64), skip=4)
    with pytest.raises(ImageTooLargeError, match="the image's data declares"):
        pixels(lying, 40_000)
    huge = replaced(FILES[kind], b"ispe", struct.pack(">LL", 60_000, 60_000), skip=4)
    with pytest.raises(ImageTooLargeError):
        pixels(huge)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_many_slices_or_frames_is_refused(kind: str) -> None:
    """Each can visit the whole picture; decoders take as many as there are in a few bytes."""
    encoded = FILES[kind]
    start = encoded.index(b"mdat") + 4
    coded = encoded[start:]
    for copies, refused in ((3, False), (20, True)):
        head = encoded[: start - 8].replace(struct.pack(">L", len(coded)), struct.pack(">L", copies * len(coded)))
        repeated = head + struct.pack(">L4s", 8 + copies * len(coded), b"mdat") + coded * copies
        if refused:
            with pytest.raises(ImageTooLargeError, match="tiles, planes and slices"):
                pixels(repeated, 100_000)
        else:
            read_picture(repeated, 100_000)


def test_the_limit_on_pixels_holds_for_a_grid() -> None:
    grid = encode_heic_grid(PICTURE)
    with pytest.raises(ImageTooLargeError):
        pixels(grid, 20_000)
    with pytest.raises(InvalidImageError):  # one tile used for all: the pieces overlap
        pixels(with_overlapping_items(grid))


def with_overlapping_items(encoded: bytes) -> bytes:
    """Return the file with the longest item as the place of each."""
    changed = bytearray(encoded)
    at = encoded.index(b"iloc") + 4
    version, sizes = encoded[at], encoded[at + 4 : at + 6]
    assert (version, sizes) == (1, b"\x44\x40"), (version, sizes)
    count = int.from_bytes(encoded[at + 6 : at + 8])
    entries = [at + 8 + index * (2 + 2 + 2 + 4 + 2 + 8) for index in range(count)]
    longest = max((encoded[entry + 12 : entry + 20] for entry in entries), key=lambda each: each[4:])
    for entry in entries:
        if encoded[entry + 3] == 0:
            changed[entry + 12 : entry + 20] = longest
    return bytes(changed)


def test_metadata_and_other_pictures_are_hidden_from_the_decoder() -> None:
    """The decoders would copy metadata for each picture; Exif of 5 MB beside 900 pictures is 4.5 GB."""
    frames = [PICTURE.rotate(9)] * 3
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + bytes(100_000)
    encoded = encode(PICTURE, "HEIF", save_all=True, append_images=frames, exif=exif)
    image, _ = heif.open_heif(encoded, LIMIT)
    assert (image.n_frames, image.info.get("exif")) == (1, None)  # type: ignore[attr-defined]
    assert difference(encoded) < 4


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (replaced(FILES["HEIF"], b"hvc1", b"", 0).replace(b"hvc1", b"jpeg"), "picture is of kind 'jpeg'"),
        (replaced(FILES["HEIF"], b"hvc1", b"", 0).replace(b"hvc1", b"iovl"), "picture is of kind 'iovl'"),
        (FILES["AVIF"].replace(b"meta", b"moov"), "without a still picture"),
    ],
    ids=["jpeg", "overlay", "sequence"],
)
def test_other_kinds_are_named(encoded: bytes, words: str) -> None:
    with pytest.raises(UnsupportedImageError, match=words):
        pixels(encoded)


def test_without_pillow_heif_heic_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heif.heif_reader.cache_clear()
    try:
        with pytest.raises(UnsupportedImageError, match="pillow-heif is not installed"):
            pixels(FILES["HEIF"])
        assert difference(FILES["AVIF"]) < 4
    finally:
        heif.heif_reader.cache_clear()


def test_mutations_give_pixels_or_our_error() -> None:
    files = [*FILES.values(), encode_heic_grid(PICTURE), encode(PICTURE.convert("RGBA"), "AVIF")]
    files = [encode(PICTURE.resize((40, 30)), kind) for kind in KINDS] + files[2:]
    for seed in range(400):
        encoded = mutate(files, random.Random(seed))
        status = 200
        try:
            pixels(encoded)
        except ServiceError as error:
            status = error.status
        assert status in (200, 413, 415, 422)
