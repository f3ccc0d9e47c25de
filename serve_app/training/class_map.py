"""List the photos of several sources, in folders or tar archives, by a CSV that maps their folders to classes."""

from __future__ import annotations

import csv
import os
import random
import tarfile
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import DatasetError
from serve_app.files import create_folder
from serve_app.preprocessing.formats import SUFFIXES

COLUMNS = ("archive", "folder", "source", "class")


@dataclass(frozen=True)
class Photo:
    """One photo of a class map."""

    path: Path
    source: str  # who took or collected it
    folder: str  # its folder in the map, which tells kinds of unknown photos apart
    label: str  # its class; empty if it is of none that the model learns


def list_photos(data: Path, class_map: Path, classes: Collection[str], unpacked: Path) -> list[Photo]:
    """List the photos of a class map; those of a class that is not among ``classes`` count as of none.

    Args:
        data: Folder that the column ``archive`` is relative to.
        class_map: CSV with a line per folder of photos: ``archive`` (a folder or a .tar, .tar.gz, …), ``folder`` in it,
            ``source`` (who took the photos) and ``class`` (empty: photos of no class).
        classes: The classes to learn.
        unpacked: Folder for the contents of archives, which are unpacked once.

    Raises:
        DatasetError: The map is not valid, a folder has no photos, or a class is not in the map.
    """
    photos: list[Photo] = []
    roots: dict[str, Path] = {}
    for number, row in _read_rows(class_map):
        archive, folder, source, label = (row[column] or "" for column in COLUMNS)
        if archive not in roots:
            roots[archive] = _root_of(data / archive, unpacked, f"{class_map}, line {number}")
        root = roots[archive] / folder
        found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise DatasetError(f"{class_map}, line {number}: no images in {root}")
        known = label if label in classes else ""
        photos += [Photo(path, source, f"{archive}/{folder}", known) for path in found]
    if missing := sorted({*classes} - {photo.label for photo in photos}):
        raise DatasetError(f"{class_map}: no photos of {', '.join(missing)}; add lines for them or drop the classes")
    return photos


def limit_unknown(photos: Sequence[Photo], per_folder: int, seed: int) -> list[Photo]:
    """Keep every photo of a class, and a random few of each other folder, in the same order."""
    kept: set[int] = set()
    seen: Counter[str] = Counter()
    for i in random.Random(seed).sample(range(len(photos)), len(photos)):
        seen[photos[i].folder] += 1
        if photos[i].label or seen[photos[i].folder] <= per_folder:
            kept.add(i)
    return [photo for i, photo in enumerate(photos) if i in kept]


def left_out(photos: Sequence[Photo], sources: Collection[str]) -> list[bool]:
    """Return which photos are judged when these sources are left out: of classes that have photos elsewhere.

    The photos of other classes stay: without them the class would not compete, and the judgment would be too good.
    """
    elsewhere = {photo.label for photo in photos if photo.label and photo.source not in sources}
    return [photo.source in sources and photo.label in elsewhere for photo in photos]


def _read_rows(class_map: Path) -> list[tuple[int, dict[str, str | None]]]:
    with class_map.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if missing := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
            raise DatasetError(f"{class_map}: the first line lacks the columns {', '.join(missing)}")
        return [(rows.line_num, row) for row in rows]


def _root_of(archive: Path, unpacked: Path, line: str) -> Path:
    """Return a folder with the contents of an archive, or the folder itself."""
    if archive.is_dir():
        return archive
    if not archive.is_file():
        raise DatasetError(f"{line}: no such folder or archive: {archive}")
    target = unpacked / archive.name
    if not target.is_dir():
        unfinished = target.with_name(f"{target.name}.unfinished-{os.getpid()}")
        create_folder(unfinished)
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(unfinished, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise DatasetError(f"{line}: {archive} is not a complete tar archive: {error}") from None
        unfinished.rename(target)
    return target
