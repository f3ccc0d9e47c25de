"""Questions to the prediction log's summaries; the only place that knows its tables. Knows no Streamlit.

``python -m serve_app.analytics.etl`` writes them: counts by hour, and histograms that can be added up, so that a
question about ten million images reads a few thousand rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pandas as pd

PHASES = ("total_ms", "decode_ms", "queue_ms", "model_ms")
QUANTILES = (0.5, 0.95, 0.99)
LOOKS = ("score", "brightness", "contrast", "sharpness")
# Population stability index: what the usual thresholds call small, moderate and large.
Level = Literal["none", "small", "moderate", "large"]
LEVELS: tuple[tuple[float, Level], ...] = ((0.25, "large"), (0.1, "moderate"), (0.02, "small"))
CHANCE_FACTOR = 5  # two samples of one stream differ by less than this times what is expected of them
LEAST_SHARE = 1e-4  # stands for a bin that is empty on one side only
Counts = Mapping[Any, int]  # images by class or by lower end of a bin


@dataclass(frozen=True)
class Span:
    """Days, in UTC, both included."""

    first: date
    last: date

    def days(self) -> list[date]:
        """Each of them."""
        return [self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1)]


@dataclass(frozen=True)
class Drift:
    """How far two samples of one thing are apart.

    Attributes:
        what: The thing.
        psi: Population stability index.
        chance: The index that two samples of these sizes from one stream have on average.
        js: Jensen-Shannon divergence, 0 for the same to 1 for nothing in common.
        level: What that is called.
        most: The class or bin whose share moved most.
    """

    what: str
    psi: float
    chance: float
    js: float
    level: Level
    most: str


class Insights:
    """One prediction log, as its ETL left it."""

    def __init__(self, folder: Path) -> None:
        """Read nothing yet."""
        self._folder = folder

    def days(self) -> list[date]:
        """Those that there are summaries of, in order."""
        return sorted(date.fromisoformat(path.stem) for path in self._files("summary/hours"))

    def volume(self, span: Span) -> pd.DataFrame:
        """Images by hour: ``hour``, ``status`` and ``images``."""
        return self._ask("hours", span, "hour, status, sum(images)::BIGINT AS images", "GROUP BY ALL ORDER BY hour")

    def errors(self, span: Span) -> pd.DataFrame:
        """Images by ``status``, the most first."""
        return self._ask("hours", span, "status, sum(images)::BIGINT AS images", "GROUP BY ALL ORDER BY images DESC")

    def phases(self, span: Span, version: str | None = None) -> dict[str, list[float]]:
        """The QUANTILES of each phase in ms, exact to a tenth of themselves."""
        bins = {metric: self.histogram(span, metric, version) for metric in PHASES}
        return {metric: [quantile(found, q) for q in QUANTILES] for metric, found in bins.items() if len(found)}

    def histogram(self, span: Span, metric: str, version: str | None = None) -> pd.DataFrame:
        """Images by bin: ``low``, ``high`` and ``images``, in order."""
        return self._ask(
            "histograms",
            span,
            "low, high, sum(images)::BIGINT AS images",
            "GROUP BY ALL ORDER BY low",
            {"metric": metric} | ({"version": version} if version else {}),
        )

    def classes(self, span: Span, version: str | None = None) -> pd.DataFrame:
        """Images and mean score by ``label``, the most frequent first."""
        return self._ask(
            "classes",
            span,
            "label, sum(images)::BIGINT AS images, sum(score_sum) / sum(images) AS mean_score",
            "GROUP BY ALL ORDER BY images DESC, label",
            {"version": version} if version else {},
        )

    def class_mix(self, span: Span, most: int = 10) -> pd.DataFrame:
        """Share of the most frequent classes by day: ``day``, ``label``, ``share``."""
        found = self._ask(
            "classes",
            span,
            "date_trunc('day', hour)::DATE AS day, label, sum(images)::BIGINT AS images",
            "GROUP BY ALL ORDER BY day",
        )
        found["share"] = found["images"] / found.groupby("day")["images"].transform("sum")
        top = found.groupby("label")["images"].sum().nlargest(most).index
        return found[found["label"].isin(top)]

    def versions(self, span: Span) -> pd.DataFrame:
        """What each version did: images, mean score, p50 and p95 of the whole time in ms."""
        known = self._ask("classes", span, "version, sum(images)::BIGINT AS images", "GROUP BY ALL ORDER BY version")
        rows = []
        for version, images in known.itertuples(index=False):
            score = self.histogram(span, "score", version)
            total = self.histogram(span, "total_ms", version)
            middle = (score["low"] + score["high"]) / 2
            rows.append(
                {
                    "version": version,
                    "images": images,
                    "mean score": float(np.average(middle, weights=score["images"])),
                    "p50 ms": quantile(total, 0.5),
                    "p95 ms": quantile(total, 0.95),
                }
            )
        return pd.DataFrame(rows)

    def least_confident(self, span: Span, count: int = 50) -> pd.DataFrame:
        """The rows with the lowest score, from the days that are still kept."""
        return self._read(
            self._files("days", span),
            "SELECT time, request_id, image, label, score, margin, version FROM found "
            f"WHERE status = 'ok' ORDER BY score, time LIMIT {count}",
        )

    def drift(self, baseline: Span, now: Span) -> list[Drift]:
        """How far two spans are apart: in the mix of classes, in confidence and in how the images look."""
        mixes = (self.classes(each).set_index("label")["images"].to_dict() for each in (baseline, now))
        found = [compare("class mix", *mixes)]
        for metric in LOOKS:
            counts = (self.histogram(each, metric).set_index("low")["images"].to_dict() for each in (baseline, now))
            found.append(compare(metric, *counts))
        return found

    def _files(self, folder: str, span: Span | None = None) -> list[Path]:
        if span is None:
            return sorted((self._folder / folder).glob("[!.]*.parquet"))
        paths = (self._folder / folder / f"{day}.parquet" for day in span.days())
        return [path for path in paths if path.exists()]

    def _ask(
        self, table: str, span: Span, columns: str, rest: str, where: dict[str, str] | None = None
    ) -> pd.DataFrame:
        conditions = " AND ".join(f"{name} = ${name}" for name in where or {}) or "true"
        query = f"SELECT {columns} FROM found WHERE {conditions} {rest}"
        return self._read(self._files(f"summary/{table}", span), query, where or {})

    def _read(self, files: list[Path], query: str, values: dict[str, str] | None = None) -> pd.DataFrame:
        if not files:
            raise LookupError("no day of this span is in the log")
        with duckdb.connect() as db:
            db.execute("SET autoinstall_known_extensions = false; SET TimeZone = 'UTC'")  # nothing is downloaded
            listed = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
            db.execute(f"CREATE VIEW found AS SELECT * FROM read_parquet([{listed}])")
            return db.execute(query, values or {}).df()


def quantile(bins: pd.DataFrame, share: float) -> float:
    """The value that this share of the images does not exceed, by a straight line through its bin."""
    total = bins["images"].cumsum().to_numpy(dtype=float)
    at = int(np.searchsorted(total, share * total[-1]))
    before = total[at - 1] if at else 0.0
    part = (share * total[-1] - before) / (total[at] - before)
    low, high = float(bins["low"].iloc[at]), float(bins["high"].iloc[at])
    return float(low + part * (high - low))


def compare(what: str, baseline: Counts, now: Counts) -> Drift:
    """Population stability index and Jensen-Shannon divergence of two counts over the same bins."""
    bins = sorted(set(baseline) | set(now))
    counts = np.array([[each.get(one, 0) for one in bins] for each in (baseline, now)], float)
    sizes = counts.sum(axis=1)
    shares = counts / sizes[:, None]
    p, q = shares.clip(LEAST_SHARE)
    psi = float(((q - p) * np.log(q / p)).sum())
    middle = (p + q) / 2
    js = float((p * np.log2(p / middle) + q * np.log2(q / middle)).sum() / 2)
    chance = (len(bins) - 1) * float((1 / sizes).sum())
    level: Level = next((name for least, name in LEVELS if psi >= max(least, CHANCE_FACTOR * chance)), "none")
    moved = int(np.abs(shares[1] - shares[0]).argmax())
    name = bins[moved] if isinstance(bins[moved], str) else f"{bins[moved]:g}"
    return Drift(what, psi, chance, js, level, f"{name}: {shares[0, moved]:.1%} → {shares[1, moved]:.1%}")
