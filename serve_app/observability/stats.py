"""Running totals of one ingress replica for GET /v1/status; Prometheus metrics cover all replicas."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import quantiles
from typing import Any

from serve_app.errors import ServiceError
from serve_app.messages import ClassifyResult

RECENT_IMAGES = 1000


class Stats:
    """Counts results and errors, and keeps the timings of the most recent images."""

    def __init__(self) -> None:
        self._since = time.time()
        self._ok = 0
        self._errors: Counter[str] = Counter()
        self._batches = 0.0
        self._in_flight = 0
        self._recent: deque[dict[str, float]] = deque(maxlen=RECENT_IMAGES)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count an image as in flight inside the block."""
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def add_result(self, result: ClassifyResult) -> None:
        """Count a classified image."""
        self._ok += 1
        # Each image of a batch of n adds 1/n, so a batch counts once.
        self._batches += 1 / result.batch_size
        self._recent.append(result.timings_ms)

    def add_error(self, error: Exception) -> None:
        """Count an error by its code."""
        self._errors[error.code if isinstance(error, ServiceError) else ServiceError.code] += 1

    def snapshot(self) -> dict[str, Any]:
        """Return the totals since the start; ``timings_ms`` covers the last 1000 images."""
        failed = sum(self._errors.values())
        phases = dict.fromkeys(phase for timings in self._recent for phase in timings)
        return {
            "up_s": round(time.time() - self._since, 1),
            "images": {"ok": self._ok, "failed": failed, "in_flight": self._in_flight},
            "errors": dict(self._errors),
            "mean_batch_size": round(self._ok / self._batches, 2) if self._batches else None,
            "timings_ms": {phase: _percentiles([t[phase] for t in self._recent if phase in t]) for phase in phases},
        }


def _percentiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        values = values * 2
    cuts = quantiles(values, n=20, method="inclusive")
    return {"p50": round(cuts[9], 2), "p95": round(cuts[18], 2)}
