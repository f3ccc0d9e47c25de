"""Compare the answers on labeled photos with the photos' classes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from frontend.api_client import Json, Photo
from serve_app.classification_metrics import summarize
from serve_app.zip_entries import (
    DIRECTORY_BYTES_PER_ENTRY,
    ZipNameError,
    directory_bytes,
    is_visible,
    list_files,
    open_zip,
    read_entry,
)

# Of a zip. The page holds an upload of at most 200 MB (frontend/.streamlit/config.toml) and its photos in memory.
MAX_ENTRIES, MAX_UNPACKED_BYTES = 20_000, 256 << 20


class LabelError(Exception):
    """The classes of photos cannot be determined; the message says what to do."""


def unzip(data: bytes, formats: Sequence[str]) -> list[Photo]:
    """Return the photos in a zip that have one of the ``formats`` in /v1/models; write nothing to disk.

    A photo's name is its clean path in the zip.

    Raises:
        LabelError: The file is not a zip, a photo in it cannot be read, or its photos exceed the limits.
    """
    file = io.BytesIO(data)
    too_large = LabelError(f"The zip has more than {MAX_ENTRIES} photos or {MAX_UNPACKED_BYTES >> 20} MB; split it.")
    try:
        if directory_bytes(file) > DIRECTORY_BYTES_PER_ENTRY * MAX_ENTRIES:
            raise too_large
        with open_zip(file) as archive:
            entries = [entry for entry in list_files(archive) if _is_photo(entry.path, formats)]
            if len(entries) > MAX_ENTRIES or sum(entry.info.file_size for entry in entries) > MAX_UNPACKED_BYTES:
                raise too_large
            return [Photo(path, _read(archive, path, info)) for path, info in entries]
    except (zipfile.BadZipFile, ZipNameError) as error:
        raise LabelError(f"This zip cannot be read: {error}.") from error


def _read(archive: zipfile.ZipFile, path: str, info: zipfile.ZipInfo) -> bytes:
    try:
        return read_entry(archive, info, info.file_size)
    except OSError as error:
        raise LabelError(f"{path} in the zip cannot be read: {error}.") from error


def by_folder(photos: Sequence[Photo], labels: Sequence[str], formats: Sequence[str]) -> list[tuple[Photo, str]]:
    """Return each photo with the class that its folder names.

    Raises:
        LabelError: A photo is in no folder, or its folder is not a class of the model.
    """
    named = [(photo, PurePosixPath(photo.name).parent.name) for photo in photos if _is_photo(photo.name, formats)]
    if not named:
        raise LabelError("There are no photos in it.")
    if unknown := sorted({name or "(no folder)" for _, name in named} - set(labels)):
        raise LabelError(
            f"These folders are not classes of the model: {', '.join(unknown[:10])}. Put each photo into a folder "
            f"named like its class: {', '.join(labels[:10])}{', …' if len(labels) > 10 else ''}."
        )
    return named


def table(named: Sequence[tuple[Photo, str]], results: Sequence[Json]) -> pd.DataFrame:
    """Return a row per photo that was classified; the index is its position in ``named``."""
    rows: dict[int, dict[str, Any]] = {}
    for i, ((photo, label), result) in enumerate(zip(named, results, strict=True)):
        if result["status"] == "ok":
            best = [prediction["label"] for prediction in result["predictions"]]
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


def compute_metrics(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the metrics of a table, over the classes in it; see classification_metrics.summarize."""
    names = sorted({*rows["label"], *rows["predicted"]})
    targets, predicted = (np.searchsorted(names, rows[column]) for column in ("label", "predicted"))
    score, among_5, sure = (rows[column].to_numpy() for column in ("score", "among_5", "sure"))
    return summarize(targets, predicted, score, among_5, sure, names)


def class_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """Return photos, precision and recall of each class as columns; NaN where a share is of nothing."""
    classes = pd.DataFrame.from_dict(metrics["classes"], orient="index").rename(columns={"images": "photos"})
    return classes.astype({"precision": float, "recall": float})


def _is_photo(name: str, formats: Sequence[str]) -> bool:
    path = PurePosixPath(name)
    return all(map(is_visible, path.parts)) and path.suffix.lower().lstrip(".") in {*formats, "jpg", "tif"}
