"""Compute accuracy, calibration and abstention from a model's answers on labeled images.

``serve-app evaluate`` and the page call these functions, so both show the same numbers. The module imports numpy
only, because the page's container holds neither torch nor pydantic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RELIABILITY_BINS = 15  # of equal width, as in Guo et al. (2017)
DIGITS = 4  # decimal places of the shares in a summary


def summarize(
    targets: np.ndarray,
    predicted: np.ndarray,
    confidence: np.ndarray,
    in_top5: np.ndarray,
    sure: np.ndarray,
    labels: Sequence[str],
) -> dict[str, Any]:
    """Compute every number of an evaluation; all shares are fractions of 1.

    Args:
        targets: int, (N,): true class ids.
        predicted: int, (N,): class ids with the best score.
        confidence: float, (N,): best scores, 0-1.
        in_top5: bool, (N,): whether the true class is among the five best.
        sure: bool, (N,): whether the model did not abstain.
        labels: Names of the C classes, by class id.

    Returns:
        ``images``, ``top1``, ``top5``, ``ece``, ``classes`` (by label: images, precision, recall), ``abstain``
        (share, precision of the rest), ``reliability`` (see reliability_diagram) and ``confusion`` (C x C counts; a
        row per true class). A share of nothing is None.
    """
    correct = predicted == targets
    confusion = np.zeros((len(labels), len(labels)), int)
    np.add.at(confusion, (targets, predicted), 1)
    diagram = reliability_diagram(confidence, correct)
    return {
        "images": len(targets),
        "top1": _share(correct.sum(), len(targets)),
        "top5": _share(in_top5.sum(), len(targets)),
        "ece": round(expected_calibration_error(diagram), DIGITS),
        "classes": {
            label: {
                "images": int(confusion[i].sum()),
                "precision": _share(confusion[i, i], confusion[:, i].sum()),
                "recall": _share(confusion[i, i], confusion[i].sum()),
            }
            for i, label in enumerate(labels)
        },
        "abstain": {"share": _share((~sure).sum(), len(sure)), "precision": _share(correct[sure].sum(), sure.sum())},
        "reliability": diagram,
        "confusion": confusion.tolist(),
    }


def in_top_k(scores: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Return whether each true class is among the k best: bool, (N,), from scores of shape (N, C)."""
    hits: np.ndarray = (np.argsort(-scores, 1)[:, :k] == targets[:, None]).any(1)
    return hits


def reliability_diagram(
    confidence: np.ndarray, correct: np.ndarray, bins: int = RELIABILITY_BINS
) -> list[dict[str, Any]]:
    """Compare confidence (best scores, 0-1) with accuracy in bins of equal width; empty bins are left out.

    Returns a row per bin: ``from`` and ``to`` (its limits), ``images``, mean ``confidence``, ``accuracy``. Source:
    DeGroot and Fienberg (1983); binned as in Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    indices = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "from": round(i / bins, DIGITS),
            "to": round((i + 1) / bins, DIGITS),
            "images": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(correct[inside].mean()),
        }
        for i in range(bins)
        if (inside := indices == i).any()
    ]


def expected_calibration_error(diagram: Sequence[dict[str, Any]]) -> float:
    """Return the mean gap between confidence and accuracy, each bin weighted by its images.

    Source: Naeini et al. (2015); Guo et al. (2017), equation 3.
    """
    total = sum(row["images"] for row in diagram)
    return float(sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in diagram) / total)


def wilson_lower_bound(hits: np.ndarray, trials: np.ndarray, z: float) -> np.ndarray:
    """Return the lower end of the score interval of proportions, trials >= 1; z = 1.645 is one-sided 95 %.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    share, slack = hits / trials, z**2 / trials
    bound: np.ndarray = (share + slack / 2 - np.sqrt(slack * share * (1 - share) + slack**2 / 4)) / (1 + slack)
    return bound


def _share(part: int, total: int) -> float | None:
    return round(float(part / total), DIGITS) if total else None
