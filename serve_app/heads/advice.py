"""What would make a head better, in words: confused classes, classes with few photos, photos to add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from serve_app.heads.report import ConfusedPair, NearDuplicate, PhotosToAdd

MAX_ADVICE = 3
EXAMPLES = 3  # taught photos that a piece of advice points to
FEW = 10  # photos of a class; more rarely help as much as photos of a confused class


class Measured(NamedTuple):
    """The photos that cross-validation measured."""

    rows: np.ndarray  # int, (m,): their rows among all photos
    targets: np.ndarray  # int, (m,)
    scores: np.ndarray  # (m, C), out of fold


def most_confused(confusion: np.ndarray, labels: Sequence[str]) -> ConfusedPair | None:
    """Return the two classes with the most mistakes between them, in either direction; None without a mistake."""
    between = np.triu(confusion + confusion.T, 1)
    first, second = np.unravel_index(between.argmax(), between.shape)
    if not between[first, second]:
        return None
    return ConfusedPair(class_names=(labels[first], labels[second]), photos=int(between[first, second]))


def duplicates_across(
    alike: np.ndarray, targets: np.ndarray, threshold: float, ids: Sequence[str], labels: Sequence[str]
) -> tuple[NearDuplicate, ...]:
    """Return the pairs of near duplicates that have different classes, the most alike first."""
    first, second = np.nonzero(np.triu((alike >= threshold) & (targets[:, None] != targets), 1))
    order = np.argsort(-alike[first, second], kind="stable")
    return tuple(
        NearDuplicate(
            example_ids=(ids[a], ids[b]),
            class_names=(labels[targets[a]], labels[targets[b]]),
            similarity=round(min(1.0, float(alike[a, b])), 4),
        )
        for a, b in zip(first[order], second[order], strict=True)
    )


def photos_to_add(
    counts: np.ndarray, measured: Measured, labels: Sequence[str], ids: Sequence[str]
) -> tuple[PhotosToAdd, ...]:
    """Return at most three kinds of photos that would help, one per class, the most useful first.

    Args:
        counts: int, (C,): independent photos by class.
        measured: What cross-validation measured.
        labels: C class names.
        ids: Example ids by row.
    """
    advice: dict[str, PhotosToAdd] = {}
    for new in (*_too_few(counts, labels), *_confused(measured, labels, ids), *_uncertain(measured, labels, ids)):
        advice.setdefault(new.class_name, new)
    return tuple(advice.values())[:MAX_ADVICE]


def _too_few(counts: np.ndarray, labels: Sequence[str]) -> list[PhotosToAdd]:
    """Return advice for the classes with the fewest photos, if they have few, or less than half of the median."""
    enough = min(FEW, float(np.median(counts)) / 2) if len(counts) > 1 else FEW
    return [
        PhotosToAdd(
            class_name=labels[c],
            advice=f"Add photos of {labels[c]!r}: it has {counts[c]} different ones, the median of all classes is "
            f"{np.median(counts):.0f}. Vary place, light and distance.",
        )
        for c in np.argsort(counts, kind="stable")
        if counts[c] < max(enough, 3)
    ]


def _confused(measured: Measured, labels: Sequence[str], ids: Sequence[str]) -> list[PhotosToAdd]:
    """Return advice for the classes with the lowest accuracy, with their photos that were taken for another class."""
    predicted = measured.scores.argmax(1)
    wrong = predicted != measured.targets
    shares = {c: wrong[measured.targets == c].mean() for c in np.unique(measured.targets[wrong])}
    advice = []
    for c in sorted(shares, key=lambda c: -shares[c]):
        mistaken = np.flatnonzero(wrong & (measured.targets == c))
        other = int(np.bincount(predicted[mistaken]).argmax())
        like = mistaken[predicted[mistaken] == other]
        advice.append(
            PhotosToAdd(
                class_name=labels[c],
                advice=f"Add photos of {labels[c]!r} that show what tells it from {labels[other]!r}: "
                f"{len(mistaken)} of {(measured.targets == c).sum()} were not recognized, {len(like)} of them were "
                f"taken for {labels[other]!r}.",
                like=tuple(ids[measured.rows[i]] for i in like[:EXAMPLES]),
            )
        )
    return advice


def _uncertain(measured: Measured, labels: Sequence[str], ids: Sequence[str]) -> list[PhotosToAdd]:
    """Return advice for the classes whose photos have the lowest scores, although they were recognized."""
    own = measured.scores[np.arange(len(measured.targets)), measured.targets]
    means = {c: own[measured.targets == c].mean() for c in np.unique(measured.targets)}
    advice = []
    for c in sorted(means, key=lambda c: means[c]):
        rows = np.flatnonzero(measured.targets == c)
        least = rows[np.argsort(own[rows], kind="stable")][:EXAMPLES]
        advice.append(
            PhotosToAdd(
                class_name=labels[c],
                advice=f"Add photos of {labels[c]!r} like the ones that the head is least sure about (mean score of "
                f"the class: {means[c]:.2f}).",
                like=tuple(ids[measured.rows[i]] for i in least),
            )
        )
    return advice
