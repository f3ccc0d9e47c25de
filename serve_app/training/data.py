"""ImageFolder on disk -> one uint8 tensor in memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from serve_app.errors import DatasetError, ServiceError
from serve_app.preprocess import preprocess
from serve_app.schemas import ImageTransform

MAX_PIXELS = 50_000_000
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class LabelledImages:
    """A whole data set in memory.

    Attributes:
        pixels: uint8, (N, 3, side, side), RGB, 0-255, channels-last in memory.
        targets: int64, (N,), index into ``labels``.
        labels: Class names, in the order of the class ids.
        paths: The file of each image.
    """

    pixels: Tensor
    targets: Tensor
    labels: tuple[str, ...]
    paths: tuple[Path, ...]


def list_images(root: Path, labels: Sequence[str] | None = None) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """List the files of an ImageFolder (``root/<class>/<image>``) with their class ids.

    Args:
        root: Folder with one sub-folder per class.
        labels: Class order to use; by default the sorted folder names.

    Raises:
        DatasetError: No class folders, an empty one, or one that ``labels`` lacks.
    """
    folders = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if not folders:
        raise DatasetError(f"{root}: expected one sub-folder of images per class, found none")
    names = tuple(labels or folders)
    if unknown := sorted(set(folders) - set(names)):
        raise DatasetError(f"{root}: these folders are not classes of the model: {', '.join(unknown)}")
    files: list[tuple[Path, int]] = []
    for folder in folders:
        found = sorted(p for p in (root / folder).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise DatasetError(f"{root / folder}: holds no images ({' '.join(sorted(SUFFIXES))})")
        files += [(path, names.index(folder)) for path in found]
    return files, names


def load_image_folder(root: Path, side: int, labels: Sequence[str] | None = None) -> LabelledImages:
    """Decode every image of an ImageFolder to its centre square of ``side`` px.

    Decoding is the serving code (``preprocess``), so that training sees the pixels
    the service will see.

    Args:
        root: Folder with one sub-folder per class.
        side: Side of the stored squares, in px.
        labels: Class order to use; by default the sorted folder names.

    Raises:
        DatasetError: The folder is not an ImageFolder, or an image in it is broken;
            the message names the file.
    """
    files, names = list_images(root, labels)
    stored = ImageTransform(resize_px=side, crop_px=side, mean=(0, 0, 0), std=(1, 1, 1))

    def decode(path: Path) -> np.ndarray:
        try:
            return preprocess(path.read_bytes(), stored, MAX_PIXELS).pixels
        except ServiceError as error:
            raise DatasetError(f"{path}: {error}") from error

    pixels = np.empty((len(files), side, side, 3), np.uint8)
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(decode, (path for path, _ in files))
        for i, image in enumerate(tqdm(decoded, f"read {root.name}", len(files), unit=" images")):
            pixels[i] = image
    return LabelledImages(
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        torch.tensor([target for _, target in files]),
        names,
        tuple(path for path, _ in files),
    )
