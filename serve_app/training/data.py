"""Read labeled images, from class folders or a CSV, into one uint8 tensor in memory."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from serve_app.config import LimitsConfig
from serve_app.errors import DatasetError, ServiceError
from serve_app.inference.weights import sha256
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.formats import SUFFIXES
from serve_app.preprocessing.transform import preprocess

LabeledFiles = list[tuple[Path, int]]  # path and class id
MAX_PIXELS = LimitsConfig().max_pixels  # the service's default: both refuse the same images
MAX_BROKEN_SHOWN = 10


@dataclass(frozen=True)
class ImageDataset:
    """Decoded images with their classes, all in memory."""

    pixels: Tensor  # uint8, (N, 3, side, side), RGB, 0-255, channels-last in memory
    targets: Tensor  # int64, (N,), class ids: indices into labels
    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    digests: tuple[str, ...]  # SHA-256 of each file, in hex

    @property
    def files(self) -> LabeledFiles:
        """Paths and class ids."""
        return list(zip(self.paths, self.targets.tolist(), strict=True))

    @property
    def fingerprint(self) -> str:
        """The same value as ``fingerprint(files, labels)``, without reading the files again."""
        names = (self.labels[target] for target in self.targets.tolist())
        return _fingerprint(zip(self.digests, names, strict=True))


def list_images(source: Path, labels: Sequence[str] | None = None) -> tuple[LabeledFiles, tuple[str, ...]]:
    """List labeled image files and their class names.

    Args:
        source: Folder ``source/<class>/<image>``, or CSV of ``path`` (relative to the CSV's folder) and ``label``.
        labels: Class names by class id; by default the names found, sorted.

    Raises:
        DatasetError: No class was found, a class has no images, or a class is not in ``labels``.
    """
    paths_by_label = _read_csv(source) if source.suffix.lower() == ".csv" else _read_folders(source)
    names = tuple(labels or sorted(paths_by_label))
    if unknown := sorted(set(paths_by_label) - set(names)):
        raise DatasetError(f"{source}: the model has no such classes: {', '.join(unknown)}")
    ids = {name: i for i, name in enumerate(names)}
    return [(path, ids[label]) for label, paths in paths_by_label.items() for path in paths], names


def _read_folders(root: Path) -> dict[str, list[Path]]:
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if not folders:
        raise DatasetError(f"{root}: expected one sub-folder of images per class; there is none")
    paths = {folder.name: sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) for folder in folders}
    if empty := [name for name, images in paths.items() if not images]:
        raise DatasetError(f"{root / empty[0]}: contains no images ({' '.join(sorted(SUFFIXES))})")
    return paths


def _read_csv(path: Path) -> dict[str, list[Path]]:
    paths: dict[str, list[Path]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"path", "label"} <= set(rows.fieldnames or ()):
            raise DatasetError(f"{path}: the first line must name the columns path and label")
        for row in rows:
            image = path.parent / (row["path"] or "")
            if not row["label"] or not image.is_file():
                reason = f"no such file: {image}" if row["label"] else "the label is empty"
                raise DatasetError(f"{path}, line {rows.line_num}: {reason}")
            paths.setdefault(row["label"], []).append(image)
    if not paths:
        raise DatasetError(f"{path}: lists no images")
    return dict(sorted(paths.items()))


def fingerprint(files: Sequence[tuple[Path, int]], labels: Sequence[str]) -> str:
    """Return a SHA-256 over the images' contents and labels; file names and order do not count."""
    return _fingerprint((sha256(path), labels[target]) for path, target in files)


def _fingerprint(contents: Iterable[tuple[str, str]]) -> str:
    lines = sorted(f"{digest} {label}\n" for digest, label in contents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_images(
    files: Sequence[tuple[Path, int]], labels: Sequence[str], side: int, skip_broken: bool = False
) -> ImageDataset:
    """Decode images to their center square of ``side`` px.

    The serving code (``preprocess``) decodes them, so training sees the pixels that the service will see.

    Raises:
        DatasetError: Images are broken (the message names them), or all of them do not fit into memory.
    """
    needed, free = len(files) * side * side * 3, psutil.virtual_memory().available
    if needed > 0.8 * free:
        sizes = f"{len(files)} images of {side} px need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        raise DatasetError(f"{sizes}: use a smaller --store-px")
    stored = ImageTransform(resize_px=side, crop_px=side, mean=(0, 0, 0), std=(1, 1, 1))

    def decode(path: Path) -> tuple[np.ndarray, str] | str:
        try:
            encoded = path.read_bytes()
            return preprocess(encoded, stored, MAX_PIXELS).pixels, hashlib.sha256(encoded).hexdigest()
        except (ServiceError, OSError) as error:
            return f"{path}: {error}"

    pixels = np.empty((len(files), side, side, 3), np.uint8)
    kept: LabeledFiles = []
    digests: list[str] = []
    broken: list[str] = []
    with ThreadPoolExecutor() as pool:
        outcomes = pool.map(decode, (path for path, _ in files))
        for file, outcome in zip(files, tqdm(outcomes, "read", len(files), unit=" images"), strict=True):
            if isinstance(outcome, str):
                broken.append(outcome)
            else:
                pixels[len(kept)], digest = outcome
                digests.append(digest)
                kept.append(file)
    if broken:
        listing = "\n".join(broken[:MAX_BROKEN_SHOWN]) + ("\n…" if len(broken) > MAX_BROKEN_SHOWN else "")
        if not skip_broken:
            raise DatasetError(f"{listing}\n{len(broken)} images are broken: repair them or use --skip-broken")
        tqdm.write(f"skipped {len(broken)} broken images:\n{listing}")
    tensor, targets = torch.from_numpy(pixels[: len(kept)]).permute(0, 3, 1, 2), torch.tensor([i for _, i in kept])
    return ImageDataset(tensor, targets, tuple(labels), tuple(path for path, _ in kept), tuple(digests))
