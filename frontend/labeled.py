"""Labeled photos and their answers -> numbers; a test holds them to those of ``serve_app.training.evaluate``."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from frontend.api_client import Json, Photo

BINS = 15  # of the reliability diagram
ENTRIES, UNPACKED_BYTES = 20_000, 1 << 30  # most that a zip may hold
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


class LabelError(Exception):
    """Photos whose classes cannot be told; the message says what to do."""


def unzip(data: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of the photos in a zip; nothing is written to disk.

    Raises:
        LabelError: Not a zip, or one that would take too much room.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [each for each in archive.infolist() if _is_photo(each.filename)]
            if len(entries) > ENTRIES or sum(each.file_size for each in entries) > UNPACKED_BYTES:
                raise LabelError(f"The zip holds more than {ENTRIES} photos or {UNPACKED_BYTES >> 30} GB.")
            return [(each.filename, archive.read(each)) for each in entries]
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise LabelError(f"This zip cannot be read: {error}.") from error


def by_folder(photos: Sequence[Photo], labels: Sequence[str]) -> list[tuple[Photo, str]]:
    """Photos with the class that their folder names.

    Raises:
        LabelError: A photo lies in no folder, or in one that is no class of the model.
    """
    named = [(photo, PurePosixPath(photo.name).parent.name) for photo in photos if _is_photo(photo.name)]
    if not named:
        raise LabelError("No photos in it.")
    if unknown := sorted({name or "(no folder)" for _, name in named} - set(labels)):
        raise LabelError(
            f"These folders are no classes of the model: {', '.join(unknown[:10])}. Put each photo into a folder "
            f"named like its class: {', '.join(labels[:10])}{', …' if len(labels) > 10 else ''}."
        )
    return named


def table(named: Sequence[tuple[Photo, str]], results: Sequence[Json]) -> pd.DataFrame:
    """A row per photo that was answered; the index is its place in ``named``."""
    rows: dict[int, dict[str, Any]] = {}
    for i, ((photo, label), result) in enumerate(zip(named, results, strict=True)):
        if result["status"] == "ok":
            best = [each["label"] for each in result["predictions"]]
            rows[i] = {
                "name": photo.name,
                "label": label,
                "predicted": best[0],
                "score": result["predictions"][0]["score"],
                "right": best[0] == label,
                "among_5": label in best[:5],
                "sure": not result["uncertainty"]["abstain"],
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def per_class(rows: pd.DataFrame) -> pd.DataFrame:
    """Photos, precision and recall of each class that was seen or predicted."""
    names = sorted({*rows["label"], *rows["predicted"]})
    return pd.DataFrame(
        {
            "photos": rows.groupby("label").size().reindex(names, fill_value=0),
            "precision": rows.groupby("predicted")["right"].mean().reindex(names),
            "recall": rows.groupby("label")["right"].mean().reindex(names),
        }
    )


def reliability(rows: pd.DataFrame) -> pd.DataFrame:
    """What best scores promise (``score``) and keep (``right``), by bin of equal width, with the ``photos`` in it."""
    bins = np.minimum((rows["score"] * BINS).astype(int), BINS - 1)
    grouped = rows.groupby(bins)
    return grouped[["score", "right"]].mean().assign(photos=grouped.size(), low=lambda f: f.index / BINS)


def summary(rows: pd.DataFrame) -> dict[str, float]:
    """The numbers of a whole evaluation, as shares of 1; precision where sure is NaN if nothing is."""
    diagram = reliability(rows)
    gaps = (diagram["score"] - diagram["right"]).abs() * diagram["photos"]
    return {
        "images": len(rows),
        "top1": float(rows["right"].mean()),
        "top5": float(rows["among_5"].mean()),
        "ece": float(gaps.sum() / len(rows)),
        "not_sure": float(1 - rows["sure"].mean()),
        "right_where_sure": float(rows.loc[rows["sure"], "right"].mean()),
    }


def _is_photo(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden
