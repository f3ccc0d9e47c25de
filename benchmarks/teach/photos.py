"""A folder or tar with a folder of photos per class -> the backbone's embeddings, computed once."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from serve_app.config import EngineConfig
from serve_app.inference.head import pool
from serve_app.inference.runtimes.select import build_runtime
from serve_app.inference.weights import load_weights, spec_of
from serve_app.preprocessing.transform import preprocess

BATCH = 16
MAX_PIXELS = 50_000_000
PHOTO = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Embedded:
    """Embeddings of photos."""

    classes: np.ndarray  # str, (n,): names of their folders
    digests: np.ndarray  # str, (n,): SHA-256 of the files
    crops: np.ndarray  # float32, (n, 512)
    mirrored: np.ndarray  # float32, (n, 512)

    def of(self, chosen: np.ndarray) -> Embedded:
        """Return some of the photos, by a mask or by indices."""
        return Embedded(self.classes[chosen], self.digests[chosen], self.crops[chosen], self.mirrored[chosen])

    def joined(self, other: Embedded) -> Embedded:
        """Return the photos of both."""
        return Embedded(
            np.concatenate((self.classes, other.classes)),
            np.concatenate((self.digests, other.digests)),
            np.concatenate((self.crops, other.crops)),
            np.concatenate((self.mirrored, other.mirrored)),
        )


def embed(source: Path, inside: str, most: int, weights: str, cache: Path) -> Embedded:
    """Return the embeddings of at most ``most`` photos per class below ``inside``; ``cache`` keeps them in a file."""
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{source.resolve()} {inside} {most} {weights}".encode()).hexdigest()[:16]
    kept = cache / f"{source.stem}-{inside.replace('/', '-')}-{key}.npz"
    if not kept.exists():
        found = _embed(_choose(_read(source, inside), most), weights)
        np.savez(kept, classes=found.classes, digests=found.digests, crops=found.crops, mirrored=found.mirrored)
    with np.load(kept) as arrays:
        return Embedded(arrays["classes"], arrays["digests"], arrays["crops"], arrays["mirrored"])


def _read(source: Path, inside: str) -> Iterator[tuple[str, bytes]]:
    """Yield the class and the content of each photo."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in PHOTO and inside in str(path):
                yield path.parent.name, path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            if member.name.lower().endswith(PHOTO) and inside in member.name and (file := archive.extractfile(member)):
                yield Path(member.name).parent.name, file.read()


def _choose(photos: Iterator[tuple[str, bytes]], most: int) -> list[tuple[str, bytes]]:
    """Return at most ``most`` photos of each class, spread over the order in which they came."""
    by_class: dict[str, list[bytes]] = {}
    for name, content in photos:
        by_class.setdefault(name, []).append(content)
    return [
        (name, contents[i])
        for name, contents in sorted(by_class.items())
        for i in np.unique(np.linspace(0, len(contents) - 1, most).round().astype(int))
    ]


def _embed(photos: list[tuple[str, bytes]], weights: str) -> Embedded:
    arrays, card = load_weights(spec_of(weights))
    runtime = build_runtime(arrays, card, EngineConfig(), os.cpu_count() or 1, False, [BATCH])

    def crop(photo: tuple[str, bytes]) -> np.ndarray:
        return preprocess(photo[1], card.transform, MAX_PIXELS).pixels

    rows: list[list[np.ndarray]] = [[], []]
    with ThreadPoolExecutor() as threads, tqdm(total=len(photos), unit=" photos") as bar:
        for start in range(0, len(photos), BATCH):
            part = photos[start : start + BATCH]
            crops = np.stack(list(threads.map(crop, part)))
            for row, pixels in zip(rows, (crops, np.ascontiguousarray(crops[:, :, ::-1])), strict=True):
                row.append(pool(runtime(pixels)))
            bar.update(len(part))
    digests = [hashlib.sha256(content).hexdigest() for _, content in photos]
    crops, mirrored = (np.concatenate(row) for row in rows)
    return Embedded(np.array([name for name, _ in photos]), np.array(digests), crops, mirrored)
