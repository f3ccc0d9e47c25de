"""ImageFolder or CSV on disk -> one uint8 tensor in memory."""

from __future__ import annotations

import csv
import hashlib
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


Files = list[tuple[Path, int]]


def list_images(source: Path, labels: Sequence[str] | None = None) -> tuple[Files, tuple[str, ...]]:
    """List labelled files with their class ids.

    Args:
        source: ImageFolder (``source/<class>/<image>``) or CSV (``path,label``; paths from where it lies).
        labels: Class order to use; by default the sorted names.

    Raises:
        DatasetError: No classes, an empty one, or one that ``labels`` lacks.
    """
    found = _of_csv(source) if source.suffix.lower() == ".csv" else _of_folders(source)
    names = tuple(labels or sorted(found))
    if unknown := sorted(set(found) - set(names)):
        raise DatasetError(f"{source}: these are not classes of the model: {', '.join(unknown)}")
    ids = {name: i for i, name in enumerate(names)}
    return [(path, ids[label]) for label, paths in found.items() for path in paths], names


def _of_folders(root: Path) -> dict[str, list[Path]]:
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if not folders:
        raise DatasetError(f"{root}: expected one sub-folder of images per class, found none")
    found = {folder.name: sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) for folder in folders}
    if empty := [name for name, paths in found.items() if not paths]:
        raise DatasetError(f"{root / empty[0]}: holds no images ({' '.join(sorted(SUFFIXES))})")
    return found


def _of_csv(path: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"path", "label"} <= set(rows.fieldnames or ()):
            raise DatasetError(f"{path}: its first line has to name the columns path and label")
        for row in rows:
            image = path.parent / (row["path"] or "")
            if not row["label"] or not image.is_file():
                raise DatasetError(
                    f"{path}, line {rows.line_num}: {'no label' if not row['label'] else 'no such file'}"
                )
            found.setdefault(row["label"], []).append(image)
    if not found:
        raise DatasetError(f"{path}: lists no images")
    return dict(sorted(found.items()))


def fingerprint(files: Sequence[tuple[Path, int]], labels: Sequence[str]) -> str:
    """SHA-256 over contents and labels, whatever the files' names and order."""
    lines = sorted(f"{content_hash(path)} {labels[target]}\n" for path, target in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def content_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
