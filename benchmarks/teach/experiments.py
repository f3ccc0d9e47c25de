"""Draws of photos: what a fit says about itself, and what is true on the photos that it did not get."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.teach.photos import Embedded
from serve_app.heads.examples import Example
from serve_app.heads.fit import Fitted, fit
from serve_app.heads.unknown import unit
from serve_app.model_card import ModelRef

BACKBONE = ModelRef(name="benchmark", version="1", sha256="0" * 64)


@dataclass(frozen=True)
class Draw:
    """Photos to teach with, from one half of each class, and the whole other half to measure on."""

    taught: Embedded
    other: Embedded


def draw(photos: Embedded, per_class: int, random: np.random.Generator) -> Draw:
    """Split each class into two random halves and take ``per_class`` photos of the first one."""
    taught: list[int] = []
    other: list[int] = []
    for name in np.unique(photos.classes):
        rows = random.permutation(np.flatnonzero(photos.classes == name))
        half = len(rows) // 2
        taught.extend(rows[: min(per_class, half)])
        other.extend(rows[half:])
    return Draw(photos.of(np.array(taught)), photos.of(np.array(other)))


def teach(photos: Embedded, labels: np.ndarray | None = None) -> Fitted:
    """Fit a head; the ids of its examples are the rows of the photos."""
    names = photos.classes if labels is None else labels
    examples = [
        Example(str(row), str(names[row]), photos.crops[row], photos.mirrored[row], str(photos.digests[row]), "")
        for row in range(len(names))
    ]
    return fit(examples, BACKBONE)


def accuracy(fitted: Fitted, photos: Embedded) -> float:
    """Return the share of photos whose best class is theirs."""
    head = fitted.head
    best = (photos.crops @ head.weight.T + head.bias).argmax(1)
    return float((np.array(head.labels)[best] == photos.classes).mean())


def reference_accuracy(taught: Embedded, other: Embedded) -> float:
    """Return the accuracy of scikit-learn's own cross-validated logistic regression on the same embeddings."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    cross_validated = LogisticRegressionCV(
        Cs=np.logspace(-4, 0, 9), l1_ratios=(0,), scoring="accuracy", max_iter=500, use_legacy_attributes=False
    )
    model = make_pipeline(StandardScaler(), cross_validated)
    model.fit(np.concatenate((taught.crops, taught.mirrored)), np.concatenate((taught.classes, taught.classes)))
    return float(model.score(other.crops, other.classes))


def flip(labels: np.ndarray, share: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a share got another class, and the flipped rows."""
    names = np.unique(labels)
    rows = random.choice(len(labels), round(share * len(labels)), replace=False)
    flipped = labels.copy()
    for row in rows:
        flipped[row] = random.choice(names[names != labels[row]])
    return flipped, rows


def known_and_unknown(fitted: Fitted, known: Embedded, unknown: Embedded) -> tuple[float, float]:
    """Return the share of known photos that keep a class, and the share of unknown ones that get none."""
    head = fitted.head

    def refused(photos: Embedded) -> float:
        nearest = (unit(photos.crops) @ head.references.T).max(1)  # distance_to() of all photos at once
        return float((1 - nearest > head.max_distance).mean())

    return 1 - refused(known), refused(unknown)
