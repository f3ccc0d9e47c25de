"""What callers may give as an image, and what is sent."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_client.errors import UnreadableImageError
from serve_client.images import EncodedImage, encode, encode_png
from tests.support.photos import STORED, make_photo, make_picture
from tests.support.photos import encode as encode_as

PHOTO = make_photo()
PICTURE = make_picture(37, 23)


def decoded(encoded: EncodedImage) -> np.ndarray:
    with Image.open(io.BytesIO(encoded.data)) as image:
        return np.asarray(image)


def test_files_are_sent_as_they_are(tmp_path: Path) -> None:
    """A path, its text, bytes and file objects give the same bytes; files give their name."""
    path = tmp_path / "cat.jpg"
    path.write_bytes(PHOTO)
    assert encode(path) == encode(str(path)) == EncodedImage(PHOTO, "cat.jpg")
    assert encode(PHOTO) == encode(bytearray(PHOTO)) == encode(memoryview(PHOTO)) == EncodedImage(PHOTO)
    assert encode(io.BytesIO(PHOTO)) == EncodedImage(PHOTO)
    with path.open("rb") as file:
        assert encode(file) == EncodedImage(PHOTO, "cat.jpg")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "HSV"])
def test_pillow_images_of_every_mode(mode: str) -> None:
    """PNG keeps the modes that it has; others become RGB."""
    picture = PICTURE.convert("I").convert("I;16") if mode == "I;16" else PICTURE.convert(mode)
    expected = picture.convert("RGB") if mode in ("CMYK", "YCbCr", "HSV") else picture
    assert np.array_equal(decoded(encode(picture)), np.asarray(expected))


@pytest.mark.parametrize("orientation", STORED)
def test_pillow_images_are_turned_upright(orientation: int) -> None:
    """The EXIF orientation, which PNG loses, is applied to the pixels."""
    stored = PICTURE if STORED[orientation] is None else PICTURE.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(io.BytesIO(encode_as(stored, "PNG", exif=exif))) as opened:
        assert np.array_equal(decoded(encode(opened)), np.asarray(PICTURE))


def test_a_broken_file_opened_by_pillow(tmp_path: Path) -> None:
    """Pillow reads pixels late, so a cut file fails when it is encoded; the error says so."""
    path = tmp_path / "cut.jpg"
    path.write_bytes(PHOTO[: len(PHOTO) // 2])
    with Image.open(path) as opened, pytest.raises(UnreadableImageError, match="Pillow image cannot be encoded"):
        encode(opened)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_arrays_keep_every_sample(mode: str) -> None:
    """Arrays become PNGs that decode to the same samples, also where the array is a view that runs backwards."""
    samples = np.asarray(PICTURE.convert(mode))
    assert np.array_equal(decoded(encode(samples)), samples)
    assert np.array_equal(decoded(encode(samples[::-1, ::2])), samples[::-1, ::2])
    if mode == "L":
        assert encode_png(samples[..., None]) == encode_png(samples)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32: scale it to 0-255"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "one image"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(UnreadableImageError, match=words):
        encode(array)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    """The error names the file or the type, and what to give instead."""
    with pytest.raises(UnreadableImageError, match=r"none\.jpg: No such file"):
        encode(tmp_path / "none.jpg")
    with pytest.raises(UnreadableImageError, match="Is a directory"):
        encode(tmp_path)
    with pytest.raises(UnreadableImageError, match="mode 'rb'"):
        encode(io.StringIO("text"))  # type: ignore[arg-type] # the mistake that is tested
    with pytest.raises(UnreadableImageError, match="of type dict: give a path"):
        encode({})  # type: ignore[arg-type] # the mistake that is tested
