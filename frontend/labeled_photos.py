"""Compare the answers on labeled photos with the photos' classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from frontend.api_client import Json, Photo
from frontend.zipped_photos import is_photo
from serve_app.classification_metrics import summarize


class LabelError(Exception):
    """The classes of photos cannot be determined; the message says what to do."""


def by_folder(photos: Sequence[Photo], labels: Sequence[str], formats: Sequence[str]) -> list[tuple[Photo, str]]:
    """Return each photo with the class that its folder names.

    Raises:
        LabelError: A photo is in no folder, or its folder is not a class of the model.
    """
    named = [(photo, PurePosixPath(photo.name).parent.name) for photo in photos if is_photo(photo.name, formats)]
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
