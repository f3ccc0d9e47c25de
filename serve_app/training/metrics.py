"""Scores and the truth -> how good they are: accuracy, per class, calibration, abstaining. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15  # of the reliability diagram, equally wide; the usual number in the literature
DIGITS = 4


def summarize(scores: np.ndarray, targets: np.ndarray, labels: Sequence[str], abstain_below: float) -> dict[str, Any]:
    """Everything that is measured of a model on labeled images; shares are of 1.

    Args:
        scores: float, (N, C): of each image, by class id; rows sum to 1.
        targets: int, (N,): the true class ids.
        labels: Of the C classes.
        abstain_below: Best scores under this count as not sure.

    Returns:
        ``images``, ``top1``, ``top5``, ``ece``, ``classes`` (images, precision, recall; None where nothing
        was to be seen), ``confusion`` (rows are the truth), ``reliability`` and ``abstain``.
    """
    best, confidence = scores.argmax(1), scores.max(1)
    right = best == targets
    confusion = np.zeros((len(labels), len(labels)), int)
    np.add.at(confusion, (targets, best), 1)
    diagram = reliability(confidence, right)
    return {
        "images": len(targets),
        "top1": _share(right.sum(), len(right)),
        "top5": _share(in_best(scores, targets, 5).sum(), len(right)),
        "ece": round(ece(diagram), DIGITS),
        "classes": {
            label: {
                "images": int(confusion[i].sum()),
                "precision": _share(confusion[i, i], confusion[:, i].sum()),
                "recall": _share(confusion[i, i], confusion[i].sum()),
            }
            for i, label in enumerate(labels)
        },
        "abstain": abstaining(confidence, right, abstain_below),
        "reliability": diagram,
        "confusion": confusion.tolist(),
    }


def in_best(scores: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Whether the truth is among the k best classes: bool, (N,)."""
    found: np.ndarray = (np.argsort(-scores, 1)[:, :k] == targets[:, None]).any(1)
    return found


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[dict[str, Any]]:
    """What best scores promise and what they keep, in bins of equal width that hold images.

    Args:
        confidence: Best score of each image, 0-1.
        right: Whether that class was right.
        bins: How many.
    """
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "from": round(i / bins, DIGITS),
            "to": round((i + 1) / bins, DIGITS),
            "images": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        for i in range(bins)
        if (inside := places == i).any()
    ]


def ece(diagram: Sequence[dict[str, Any]]) -> float:
    """Expected calibration error: mean distance of promise and truth, each bin by its images."""
    total = sum(each["images"] for each in diagram)
    return float(sum(each["images"] * abs(each["confidence"] - each["accuracy"]) for each in diagram) / total)


def abstaining(confidence: np.ndarray, right: np.ndarray, below: float) -> dict[str, Any]:
    """What a threshold does: the share that it marks as not sure, and the precision of the rest."""
    sure = confidence >= below
    return {
        "below": below,
        "share": _share((~sure).sum(), len(sure)),
        "precision": _share(right[sure].sum(), sure.sum()),
    }


def _share(part: int, whole: int) -> float | None:
    return round(float(part / whole), DIGITS) if whole else None
