"""Examples that probably have the wrong class: confident learning on out-of-fold scores.

Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (2021), section 3.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Suspect(NamedTuple):
    """A row with a probable label error."""

    row: int
    suggested: int  # class id
    score: float  # of the suggested class


def find_label_errors(scores: np.ndarray, targets: np.ndarray) -> list[Suspect]:
    """Return the probable label errors, the most probable first.

    A photo counts as a confident example of a class if its score reaches the mean score that photos labeled with that
    class have. A photo that so belongs to another class than its label says is suspect.

    Args:
        scores: Out-of-fold softmax scores, (n, C).
        targets: Class ids by the labels, (n,).
    """
    classes = scores.shape[1]
    own = scores[np.arange(len(targets)), targets]
    counts = np.bincount(targets, minlength=classes)
    thresholds = np.bincount(targets, own, classes) / np.maximum(counts, 1)
    thresholds[counts == 0] = np.inf  # no photo of the class was measured
    confident = np.where(scores >= thresholds, scores, -1.0)
    suggested = confident.argmax(1)
    rows = np.flatnonzero((confident.max(1) >= 0) & (suggested != targets))
    margins = scores[rows, suggested[rows]] - own[rows]
    return [
        Suspect(int(row), int(suggested[row]), float(scores[row, suggested[row]]))
        for row in rows[np.argsort(-margins, kind="stable")]
    ]
