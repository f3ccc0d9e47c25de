"""Photo-like JPEGs of real sizes, made here so that nobody has to bring photos; seeded, the same every time.

``python -m benchmarks.images FOLDER`` writes the default set.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

COUNT = 64
# What the usual photo collections hold, most of it 500 px long.
SIZES = ((500, 375), (375, 500), (500, 333), (500, 400), (640, 480), (480, 640))
MEDIAN_BYTES = 107_000
SPREAD = 0.25  # of the logarithm of the file sizes
SMALLEST, LARGEST = 40_000, 240_000
QUALITY = 90
TEXTURE_TRIES = 7


def photo(seed: int, width: int, height: int, target_bytes: int) -> bytes:
    """One JPEG of about ``target_bytes``: light and shade, a few things with edges, and texture.

    The texture is made as strong as it takes to reach the size, which a real photo's detail does too.
    """
    random = np.random.default_rng(seed)
    scene = _scene(random, width, height)
    texture = _octaves(random, width, height, finest=2) + 0.5 * random.normal(size=(height, width, 1))
    weak, strong = 0.0, 90.0
    for _ in range(TEXTURE_TRIES):
        amount = (weak + strong) / 2
        encoded = _encode(scene + amount * texture)
        if len(encoded) > target_bytes:
            strong = amount
        else:
            weak = amount
    return encoded


def write_photos(folder: Path, count: int = COUNT, seed: int = 0) -> list[Path]:
    """Write the default set: sizes as above, files spread around their median as photos are."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in tqdm(range(count), desc="making photos", leave=False, disable=None):
        width, height = SIZES[random.integers(len(SIZES))]
        target = int(np.clip(MEDIAN_BYTES * np.exp(SPREAD * random.normal()), SMALLEST, LARGEST))
        paths.append(folder / f"photo-{i:03}.jpg")
        paths[-1].write_bytes(photo(seed * 1000 + i, width, height, target))
    return paths


def _scene(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Soft light in colors of its own, with ellipses and polygons: float, about 0-255."""
    picture = Image.new("RGB", (width, height), tuple(map(int, random.integers(40, 216, 3))))
    draw = ImageDraw.Draw(picture)
    for _ in range(random.integers(4, 10)):
        color = tuple(map(int, random.integers(0, 256, 3)))
        x, y = random.uniform(0, width), random.uniform(0, height)
        radii = random.uniform(0.05, 0.35, 2) * min(width, height)
        if random.random() < 0.5:
            draw.ellipse((x - radii[0], y - radii[1], x + radii[0], y + radii[1]), color)
        else:
            corners = random.normal(0, 1, (5, 2)) * radii + (x, y)
            draw.polygon([(float(a), float(b)) for a, b in corners], color)
    light = _octaves(random, width, height, finest=64)
    return np.asarray(picture, np.float32) + 35 * light


def _octaves(random: np.random.Generator, width: int, height: int, finest: int) -> np.ndarray:
    """Noise as in nature, the coarser the stronger, down to grains of ``finest`` px: about -1 to 1."""
    total = np.zeros((height, width, 3), np.float32)
    grain, weight = max(width, height) // 2, 1.0
    while grain >= finest:
        coarse = random.normal(size=(height // grain + 2, width // grain + 2, 3)) * 40 + 128
        layer = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        total += weight * (np.asarray(layer, np.float32) - 128) / 40
        grain, weight = grain // 2, weight * 0.7
    return total / 2


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    options = parser.parse_args()
    sizes = sorted(path.stat().st_size for path in write_photos(options.folder, options.count))
    print(f"{len(sizes)} photos, median {sizes[len(sizes) // 2] / 1000:.0f} kB in {options.folder}")


if __name__ == "__main__":
    main()
