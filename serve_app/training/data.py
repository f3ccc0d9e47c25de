"""ImageFolder or CSV on disk -> one uint8 tensor in memory."""

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

from serve_app.errors import DatasetError, ServiceError
from serve_app.model_card import ImageTransform
from serve_app.preprocessing.transform import preprocess

Files = list[tuple[Path, int]]  # with class ids
MAX_PIXELS = 50_000_000
SHOWN = 10  # broken files
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class LabeledImages:
    """A whole data set in memory.

    Attributes:
        pixels: uint8, (N, 3, side, side), RGB, 0-255, channels-last in memory.
        targets: int64, (N,), index into ``labels``.
        labels: Class names, in the order of the class ids.
        paths: The file of each image.
        digests: SHA-256 of each file, in hex.
    """

    pixels: Tensor
    targets: Tensor
    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    digests: tuple[str, ...]

    @property
    def files(self) -> Files:
        """Paths and class ids."""
        return list(zip(self.paths, self.targets.tolist(), strict=True))


def list_images(source: Path, labels: Sequence[str] | None = None) -> tuple[Files, tuple[str, ...]]:
    """List labeled files with their class ids.

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
    return fingerprint_of((content_hash(path), labels[target]) for path, target in files)


def content_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint_of(contents: Iterable[tuple[str, str]]) -> str:
    """The same of the contents' SHA-256 and labels."""
    lines = sorted(f"{digest} {label}\n" for digest, label in contents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_images(
    files: Sequence[tuple[Path, int]], labels: Sequence[str], side: int, skip_broken: bool = False
) -> LabeledImages:
    """Decode images to their center square of ``side`` px.

    Decoding is the serving code (``preprocess``), so that training sees the pixels
    the service will see.

    Args:
        files: With their class ids.
        labels: Class names.
        side: Side of the stored squares, in px.
        skip_broken: Leave broken images out.

    Raises:
        DatasetError: Images are broken; the message names them. Or they do not fit into memory.
    """
    needed, free = len(files) * side * side * 3, psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise DatasetError(
            f"{len(files)} images of {side} px need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free: "
            "use a smaller --store-px"
        )
    stored = ImageTransform(resize_px=side, crop_px=side, mean=(0, 0, 0), std=(1, 1, 1))

    def decode(path: Path) -> tuple[np.ndarray, str] | str:
        try:
            encoded = path.read_bytes()
            return preprocess(encoded, stored, MAX_PIXELS).pixels, hashlib.sha256(encoded).hexdigest()
        except (ServiceError, OSError) as error:
            return f"{path}: {error}"

    pixels = np.empty((len(files), side, side, 3), np.uint8)
    kept: Files = []
    digests: list[str] = []
    broken: list[str] = []
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(decode, (path for path, _ in files))
        for file, found in zip(files, tqdm(decoded, "read", len(files), unit=" images"), strict=True):
            if isinstance(found, str):
                broken.append(found)
            else:
                pixels[len(kept)] = found[0]
                digests.append(found[1])
                kept.append(file)
    if broken and not skip_broken:
        raise DatasetError(f"{_some(broken)}\n{len(broken)} broken in all: mend them, or use --skip-broken")
    if broken:
        tqdm.write(f"left out, as they are broken:\n{_some(broken)}")
    return LabeledImages(
        torch.from_numpy(pixels[: len(kept)]).permute(0, 3, 1, 2),
        torch.tensor([target for _, target in kept]),
        tuple(labels),
        tuple(path for path, _ in kept),
        tuple(digests),
    )


def _some(lines: Sequence[str]) -> str:
    return "\n".join([*lines[:SHOWN], *(["…"] if len(lines) > SHOWN else [])])
