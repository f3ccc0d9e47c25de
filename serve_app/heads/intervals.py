"""The accuracy that a further photo has, with an interval that accounts for how few photos measured it."""

from __future__ import annotations

import numpy as np

from serve_app.classification_metrics import wilson_lower_bound
from serve_app.heads.report import Accuracy

Z = 1.96  # two-sided 95 %


def accuracy_of(correct: np.ndarray, folds: int) -> Accuracy:
    """Return the share of right out-of-fold predictions, bool, (n,), with its 95 % interval.

    Wilson's score interval, whose number of photos is reduced: the fits of ``folds``-fold cross-validation share most
    of their photos, so their results vary together. The variance is larger by 1 + folds / (folds - 1).

    Source: Nadeau and Bengio, "Inference for the Generalization Error" (2003), equation 11: 1/J + n2/n1 in place of
    1/J, with J = folds and n2/n1 = 1 / (folds - 1). benchmarks/teach measures how often the interval holds.
    """
    photos, hits = len(correct), int(correct.sum())
    independent = photos / (1 + folds / (folds - 1))
    share = hits / photos
    low, miss = wilson_lower_bound(np.array([share, 1 - share]) * independent, np.full(2, independent), Z).tolist()
    return Accuracy(
        photos=photos, correct=hits, accuracy=round(share, 4), low=round(max(0.0, low), 4), high=round(1 - miss, 4)
    )
