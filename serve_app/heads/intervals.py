"""The accuracy that as many other photos will have, with an interval that accounts for how few photos measured it."""

from __future__ import annotations

import math

import numpy as np

from serve_app.classification_metrics import wilson_lower_bound
from serve_app.heads.report import Accuracy

Z = 1.96  # two-sided 95 %


def accuracy_of(correct: np.ndarray, folds: int) -> Accuracy:
    """Return the share of right out-of-fold predictions, bool, (n,), with its 95 % interval.

    The interval is for the share that the head reaches on as many other photos. It is Wilson's score interval for
    fewer photos than were measured, because the difference of the two shares varies more than one share does:

    - The fits of cross-validation share most of their photos, so their results vary together. Nadeau and Bengio,
      "Inference for the Generalization Error" (2003), equation 11: 1/J + n2/n1 in place of 1/J. With J = ``folds`` and
      n2/n1 = 1 / (folds - 1) the variance grows by 1 + folds / (folds - 1).
    - The other photos are a sample too, which adds the variance of one share.

    The ends are rounded outwards to whole photos: a share of 59.2 of 60 photos cannot be measured, and 60 of 60 can.
    ``python -m benchmarks.teach`` measures how often the interval holds; docs/teach.md has the result.
    """
    photos, hits = len(correct), int(correct.sum())
    independent = photos / (2 + folds / (folds - 1))
    share = hits / photos
    low, miss = wilson_lower_bound(np.array([share, 1 - share]) * independent, np.full(2, independent), Z).tolist()
    return Accuracy(
        photos=photos,
        correct=hits,
        accuracy=round(share, 4),
        low=max(0, math.floor(low * photos)) / photos,
        high=min(photos, math.ceil((1 - miss) * photos)) / photos,
    )
