"""DuckDB queries over the prediction log's summaries: counts by hour, and histograms that can be added up.

A query over ten million images reads a few thousand rows. prediction_log_reader.py adds what has no summary yet. This
file knows no Streamlit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from frontend.prediction_log_reader import LogSnapshot, RawFiles

PHASES = ("total_ms", "decode_ms", "queue_ms", "model_ms")
QUANTILES = (0.5, 0.95, 0.99)
DRIFT_METRICS = ("score", "brightness", "contrast", "sharpness")
LEVELS = ((0.25, "large"), (0.1, "moderate"), (0.02, "small"))
"""Lowest PSI of each level.

0.1 and 0.25 are the customary thresholds: Siddiqi, "Credit Risk Scorecards", Wiley 2006. 0.02 is this project's: one
class of ten that doubles its share gives a PSI of about 0.08 and has to show.
"""
NOISE_FACTOR = 5
"""A PSI below this many times its expected value without drift counts as "none".

The expected value is (bins - 1)(1/n + 1/m): Yurdakul and Naranjo, "Statistical properties of the population stability
index", Journal of Risk Model Validation 14(4), 2020. The factor is this project's.
"""
MIN_SHARE = 1e-4
"""Share of a bin that is empty in one of the two samples: PSI divides by it. The value is this project's."""
Counts = Mapping[Any, int]  # images by class, or by a bin's lower end


class DateRange(NamedTuple):
    """Days in UTC, from ``first`` to ``last``, both included."""

    first: date
    last: date


@dataclass(frozen=True)
class Drift:
    """The difference between two samples of one metric."""

    metric: str
    psi: float  # population stability index, 0 for equal distributions
    expected_psi: float  # mean PSI of two samples of these sizes without drift
    js: float  # Jensen-Shannon divergence in bits, 0-1
    level: str  # of the PSI: "none" or one of LEVELS
    largest_change: str  # the class or bin whose share changed most, with both shares


class PredictionLogQueries:
    """Queries over the prediction log in the folder that ``prediction_log.folder`` names, as it is at this moment.

    Every query raises LookupError where the log has nothing for any day of the range.
    """

    def __init__(self, folder: Path, raw: RawFiles | None = None) -> None:
        self._log = LogSnapshot(folder, raw or RawFiles(folder))

    def days(self) -> list[date]:
        """Return the days that have counts, in order."""
        return self._log.days

    def volume(self, days: DateRange) -> pd.DataFrame:
        """Return images by ``hour`` and ``status``."""
        return self._summary("hours", days, "hour, status, sum(images)::BIGINT AS images", "ORDER BY ALL")

    def statuses(self, days: DateRange) -> pd.DataFrame:
        """Return images by ``status``, the most frequent first."""
        return self._summary("hours", days, "status, sum(images)::BIGINT AS images", "ORDER BY images DESC")

    def phase_quantiles(self, days: DateRange) -> dict[str, list[float]]:
        """Return the QUANTILES of each phase, in ms; phases without images are left out."""
        histograms = {phase: self.histogram(days, phase) for phase in PHASES}
        return {phase: [quantile(bins, q) for q in QUANTILES] for phase, bins in histograms.items() if len(bins)}

    def histogram(self, days: DateRange, metric: str, version: str | None = None) -> pd.DataFrame:
        """Return images by bin of a metric: ``low``, ``high`` and ``images``, in ascending order."""
        where = {"metric": metric} | ({"version": version} if version else {})
        return self._summary("histograms", days, "low, high, sum(images)::BIGINT AS images", "ORDER BY low", **where)

    def classes(self, days: DateRange) -> pd.DataFrame:
        """Return images and mean score by ``label``, the most frequent first."""
        columns = "label, sum(images)::BIGINT AS images, sum(score_sum) / sum(images) AS mean_score"
        return self._summary("classes", days, columns, "ORDER BY images DESC, label")

    def class_mix(self, days: DateRange, max_classes: int = 10) -> pd.DataFrame:
        """Return the most frequent classes' share of each day's images: ``day``, ``label``, ``share``."""
        columns = "date_trunc('day', hour)::DATE AS day, label, sum(images)::BIGINT AS images"
        mix = self._summary("classes", days, columns, "ORDER BY day")
        mix["share"] = mix["images"] / mix.groupby("day")["images"].transform("sum")
        frequent = mix.groupby("label")["images"].sum().nlargest(max_classes).index
        return mix[mix["label"].isin(frequent)]

    def versions(self, days: DateRange) -> pd.DataFrame:
        """Return each model version's images, mean score, and p50 and p95 of the total time in ms."""
        columns = 'version, sum(images)::BIGINT AS images, sum(score_sum) / sum(images) AS "mean score"'
        versions = self._summary("classes", days, columns, "ORDER BY version")
        total = [self.histogram(days, "total_ms", version) for version in versions["version"]]
        return versions.assign(**{f"p{q * 100:.0f} ms": [quantile(bins, q) for bins in total] for q in QUANTILES[:2]})

    def least_confident(self, days: DateRange, max_rows: int = 50) -> pd.DataFrame:
        """Return the rows with the lowest scores, from the days whose rows the log still keeps."""
        query = (
            "SELECT time, request_id, image, label, score, margin, version FROM log "
            f"WHERE status = 'ok' ORDER BY score, time LIMIT {max_rows}"
        )
        return self._query("rows", days, query)

    def drift(self, baseline: DateRange, current: DateRange) -> list[Drift]:
        """Return the drift of the class mix and of each of DRIFT_METRICS between two ranges of days."""
        ranges = baseline, current
        return [
            measure_drift("class mix", *(_counts(self.classes(days), "label") for days in ranges)),
            *(measure_drift(m, *(_counts(self.histogram(days, m), "low") for days in ranges)) for m in DRIFT_METRICS),
        ]

    def _summary(self, table: str, days: DateRange, columns: str, order: str, **where: str) -> pd.DataFrame:
        """Group one summary table by its columns that are no aggregates."""
        conditions = " AND ".join(f"{name} = ${name}" for name in where) or "true"
        query = f"SELECT {columns} FROM log WHERE {conditions} GROUP BY ALL {order}"
        return self._query(table, days, query, **where)

    def _query(self, table: str, days: DateRange, query: str, **values: str) -> pd.DataFrame:
        dates = [days.first + timedelta(n) for n in range((days.last - days.first).days + 1)]
        return self._log.query(table, dates, query, values)


def quantile(bins: pd.DataFrame, q: float) -> float:
    """Return the q-quantile (q in 0-1) of a histogram's rows ``low``, ``high`` and ``images``, in ascending order.

    The function interpolates linearly within the bin that holds the quantile, as Prometheus's ``histogram_quantile()``
    does for classic histograms. It is off by at most that bin's width, a tenth of the value for the phases' times.
    """
    cumulative = bins["images"].cumsum().to_numpy(dtype=float)
    rank = q * cumulative[-1]
    i = int(np.searchsorted(cumulative, rank))
    below = cumulative[i - 1] if i else 0.0
    fraction = (rank - below) / (cumulative[i] - below)
    low, high = bins[["low", "high"]].iloc[i]
    return float(low + fraction * (high - low))


def measure_drift(metric: str, baseline: Counts, current: Counts) -> Drift:
    """Compare two samples' counts over the same bins.

    With the shares p (baseline) and q (current) and their mean m:
    PSI = sum((q - p) ln(q / p)); JS = sum(p log2(p / m) + q log2(q / m)) / 2.

    Source:
        PSI: see LEVELS and NOISE_FACTOR. JS: Lin, "Divergence measures based on the Shannon entropy",
        IEEE Transactions on Information Theory 37(1), 1991.
    """
    bins = sorted(set(baseline) | set(current))
    counts = np.array([[sample.get(key, 0) for key in bins] for sample in (baseline, current)], float)
    sizes = counts.sum(axis=1)
    shares = counts / sizes[:, None]
    p, q = shares.clip(MIN_SHARE)
    psi = float(((q - p) * np.log(q / p)).sum())
    m = (p + q) / 2
    js = float((p * np.log2(p / m) + q * np.log2(q / m)).sum() / 2)
    expected_psi = (len(bins) - 1) * float((1 / sizes).sum())
    level = next((name for lowest, name in LEVELS if psi >= max(lowest, NOISE_FACTOR * expected_psi)), "none")
    i = int(np.abs(shares[1] - shares[0]).argmax())
    name = bins[i] if isinstance(bins[i], str) else f"{bins[i]:g}"
    return Drift(metric, psi, expected_psi, js, level, f"{name}: {shares[0, i]:.1%} → {shares[1, i]:.1%}")


def _counts(table: pd.DataFrame, key: str) -> dict[Any, int]:
    return dict(zip(table[key], table["images"], strict=True))
