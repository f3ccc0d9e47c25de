"""Samples of more than 8 bits -> 8 bits. The scale comes from the file's tags, never from a single pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

SAMPLED_PX = 1024  # side of the grid of pixels that the range is estimated from
# Share of the pixels, in percent, that may lie outside the estimated range: overshoot, hot pixels, infinities.
OUTLIERS = 0.1
# Largest values of data that uses only a part of its type: 8, 10, 12 and 16 bits.
WHITE = (255, 1023, 4095, 65535)
SIGNED_WHITE = (127, 511, 2047, 32767)
OVERSHOOT = 1.1  # sharpened or resized float data exceeds its white by so much in more than a few pixels
HDR = 8.0  # floats up to this many times white 1.0 are highlights; as 0-255 they would be a black picture


class Samples(NamedTuple):
    """How an image that Pillow decoded as one band of numbers stores its pixels."""

    kind: str  # numpy's kind and size of one sample without byte order: u2, i2, f2, i1, u4, i4, f4, i8, u8, f8
    channels: int = 1  # samples per pixel; Pillow's image is so many times as wide. 1 or 2: gray; 3 or 4: RGB
    inverted: bool = False  # the smallest value is white
    black: float | None = None  # None: estimate from the pixels
    white: float | None = None
    largest: float | None = None  # what the file calls its largest value, instead of an estimate of it
    alpha: bool = False  # the channel behind the colors is opacity; otherwise it is left out
    transparent: int | None = None  # gray value of transparent pixels
    high_word_first: bool = False  # the order of the two numbers that make one sample of 64 bits

    @property
    def colors(self) -> int:
        """Return how many channels are colors."""
        return 1 if self.channels < 3 else 3

    @property
    def numbers_per_pixel(self) -> int:
        """Return how many of Pillow's numbers make one pixel: two of 32 bits for one sample of 64 bits."""
        return self.channels * (2 if self.kind[1:] == "8" else 1)


def converter(image: Image.Image, samples: Samples) -> Callable[[tuple[int, int, int, int]], Image.Image]:
    """Return the function that converts a part of this image, given in pixels, to RGB or RGBA of 8 bits."""
    black, white = _range(image, samples)
    width = samples.numbers_per_pixel

    def convert(box: tuple[int, int, int, int]) -> Image.Image:
        left, top, right, bottom = box
        values = _pixels(image.crop((left * width, top, right * width, bottom)), samples)
        values = values[..., : samples.colors + samples.alpha]
        with np.errstate(invalid="ignore"):  # a signaling NaN becomes a quiet one, which nan_to_num replaces
            scaled = (values.astype(np.float64) - black) * (255 / (white - black))
        if samples.inverted:
            scaled[..., : samples.colors] = 255 - scaled[..., : samples.colors]
        levels = np.clip(np.round(np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)), 0, 255).astype(np.uint8)
        if samples.transparent is not None:
            opacity = np.where(values == samples.transparent, 0, 255).astype(np.uint8)
            levels = np.concatenate([levels, opacity], -1)
        if levels.shape[-1] < 3:
            levels = np.concatenate([levels[..., :1].repeat(3, -1), levels[..., 1:]], -1)
        return Image.fromarray(levels)

    return convert


def _pixels(part: Image.Image, samples: Samples) -> np.ndarray:
    """Return the samples as (height, width, channels) of their own type."""
    stored = np.asarray(part)
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if samples.high_word_first:
        native = native.reshape(stored.shape[0], -1, 2)[..., ::-1]
    native = np.ascontiguousarray(native).reshape(stored.shape[0], -1)
    return native.view(samples.kind).reshape(stored.shape[0], -1, samples.channels)


def _range(image: Image.Image, samples: Samples) -> tuple[float, float]:
    """Return the values of black and white."""
    kind, size = samples.kind[0], 8 * int(samples.kind[1:])
    if samples.black is not None and samples.white is not None:
        return samples.black, samples.white
    low, high = _percentiles(image, samples)
    high = high if samples.largest is None else samples.largest
    if kind == "u":
        return 0, _smallest(WHITE, high, 2**size - 1)
    if kind == "i":
        if low < 0:
            white = _smallest(SIGNED_WHITE, max(high, -low - 1), 2 ** (size - 1) - 1)
            return -white - 1, white
        return 0, _smallest(WHITE, high, 2 ** (size - 1) - 1)
    extent = max(high, -low)
    white = 1.0 if extent <= HDR else next((each for each in WHITE if extent <= each * OVERSHOOT), extent)
    return (-white if low < -white / 4 else 0.0), white


def _smallest(whites: tuple[int, ...], value: float, full: float) -> float:
    return next((white for white in whites if value <= white < full), full)


def _percentiles(image: Image.Image, samples: Samples) -> tuple[float, float]:
    """Return the range without OUTLIERS of the finite color values on a grid of the image's pixels."""
    numbers = samples.numbers_per_pixel
    width, height = image.width // numbers, image.height
    step_x, step_y = -(-width // SAMPLED_PX), -(-height // SAMPLED_PX)
    rows = [
        _pixels(image.crop((0, top, image.width, top + 1)), samples)[:, ::step_x] for top in range(0, height, step_y)
    ]
    values = np.concatenate(rows)
    with np.errstate(invalid="ignore"):
        values = values[..., : samples.colors].astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, (OUTLIERS, 100 - OUTLIERS), method="nearest")
    return float(low), float(high)
