"""Comparing the answer of the serving variant with that of the shadow variant."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.http.service import Answer


@dataclass(frozen=True)
class Comparison:
    """What two variants said about one image.

    Attributes:
        agree: Their best classes have the same label.
        difference: How far apart their scores of the first one's best label are, 0-1; a label that is not
            among the shadow's counts as 0.
    """

    agree: bool
    difference: float


def compare(answer: Answer, shadow: Answer) -> Comparison:
    """Compare the answer that was given with the shadow's, by label: class ids belong to their weights."""
    (label, score), *_ = _scores(answer).items()
    others = _scores(shadow)
    return Comparison(next(iter(others)) == label, abs(score - others.get(label, 0.0)))


def _scores(answer: Answer) -> dict[str, float]:
    found = answer.classification
    return {answer.labels[class_id]: score for class_id, score in zip(found.class_ids, found.scores, strict=True)}
