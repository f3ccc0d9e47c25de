"""Copies of images for the shadow variant: its results are compared with the returned ones and never returned."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

from serve_app.messages import ClassifyResult

MAX_IN_FLIGHT = 8  # further copies are dropped, so that a slow shadow costs no memory
log = logging.getLogger("serve_app")


@dataclass(frozen=True)
class Comparison:
    """How two results for one image differ."""

    agree: bool  # their best classes have the same label
    # Absolute difference of the scores of the returned result's best label, 0-1; a missing label's score is 0.
    difference: float


class ShadowStats:
    """Counts the copies that are in flight, compared, failed and dropped."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def reserve(self) -> bool:
        """Count one more copy in flight; False if it has to be dropped."""
        free = self._counts["in_flight"] < MAX_IN_FLIGHT
        self._counts["in_flight" if free else "dropped"] += 1
        return free

    def add_error(self) -> None:
        """Count a copy that failed."""
        self._counts["in_flight"] -= 1
        self._counts["failed"] += 1

    def add_result(self, returned: ClassifyResult, shadowed: ClassifyResult) -> Comparison:
        """Compare the result of a copy with the returned result and count it."""
        self._counts["in_flight"] -= 1
        comparison = compare(returned, shadowed)
        self._counts["compared"] += 1
        self._counts["agreed"] += comparison.agree
        if not comparison.agree:
            log.info("shadow %s disagrees with %s: %s", shadowed.model.version, returned.model.version, comparison)
        return comparison

    def snapshot(self) -> dict[str, Any]:
        """Return the counts for GET /v1/status."""
        return {name: self._counts[name] for name in ("compared", "agreed", "failed", "dropped", "in_flight")}


def compare(returned: ClassifyResult, shadowed: ClassifyResult) -> Comparison:
    """Compare two results by label: class ids belong to their own weights."""
    label, score = returned.labels[0], returned.scores[0]
    shadow_scores = dict(zip(shadowed.labels, shadowed.scores, strict=True))
    return Comparison(shadowed.labels[0] == label, abs(score - shadow_scores.get(label, 0.0)))
