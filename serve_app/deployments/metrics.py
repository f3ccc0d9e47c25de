"""Prometheus metrics of the ingress, through Ray Serve; Ray adds the prefix ``ray_`` to their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram

from serve_app.messages import ClassifyResult
from serve_app.observability.feedback_store import Vote
from serve_app.routing.shadow import Comparison

MILLISECONDS = [1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]  # histogram bounds
TENTHS = [n / 10 for n in range(1, 11)]


class IngressMetrics:
    """Counts images, shadow comparisons, rows of the prediction log and votes; see RoutingMetrics."""

    def __init__(self) -> None:
        tags: Any = ("variant", "version")  # Ray's annotation allows one name only
        error_tags: Any = ("variant", "code")
        self._ms = Histogram("image_ms", "Time of a classified image, by phase.", MILLISECONDS, (*tags, "phase"))
        self._failed = Counter("variant_failed_images", "Images that got an error.", error_tags)
        self._compared = Counter("shadow_compared", "Images compared with the shadow variant.", (*tags, "agree"))
        self._difference = Histogram("shadow_difference", "Difference of the scores of one label.", TENTHS, tags)
        self._rows = Gauge("prediction_log_rows", "Rows of the prediction log, by state.", ("state",))
        self._votes = Counter("feedback_votes", "Feedback votes.", ("correct",))

    def add_result(self, variant: str, result: ClassifyResult, seconds: float) -> None:
        """Count a classified image."""
        tags = {"variant": variant, "version": result.model.version}
        for phase, ms in {**result.timings_ms, "total": seconds * 1000}.items():
            self._ms.observe(ms, {**tags, "phase": phase})

    def add_error(self, variant: str, code: str) -> None:
        """Count an error."""
        self._failed.inc(tags={"variant": variant, "code": code})

    def add_comparison(self, variant: str, version: str, comparison: Comparison) -> None:
        """Count a comparison with the shadow."""
        tags = {"variant": variant, "version": version}
        self._compared.inc(tags={**tags, "agree": str(comparison.agree).lower()})
        self._difference.observe(comparison.difference, tags)

    def set_log_rows(self, rows: Mapping[str, int]) -> None:
        """Report how many rows of the prediction log are written, buffered and dropped."""
        for state, count in rows.items():
            self._rows.set(count, {"state": state})

    def add_vote(self, vote: Vote) -> None:
        """Count a vote."""
        self._votes.inc(tags={"correct": "unsaid" if vote.correct is None else str(vote.correct).lower()})
