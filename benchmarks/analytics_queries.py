"""How long the analytics page's questions take on a large prediction log: ``python -m benchmarks.analytics_queries``.

Makes a log of so many rows (DuckDB, random, a tenth of them each day), runs the real ETL over it and asks each
question of ``frontend.prediction_log_queries`` over all days. Exit code 1: one took longer than ``--limit-s``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from frontend.prediction_log_queries import DateRange, PredictionLogQueries
from serve_app.analytics import etl
from tests.support.logged import log_day

DAYS, FIRST, REPEATS = 10, date(2026, 3, 1), 5


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def questions(queries: PredictionLogQueries) -> dict[str, Callable[[], Any]]:
    """What the page asks when all days are chosen, and the drift of one half against the other."""
    days = queries.days()
    span, half = DateRange(days[0], days[-1]), len(days) // 2
    before, after = DateRange(days[0], days[half - 1]), DateRange(days[half], days[-1])
    return {
        "volume": lambda: queries.volume(span),
        "statuses": lambda: queries.statuses(span),
        "phase quantiles": lambda: queries.phase_quantiles(span),
        "batch sizes": lambda: queries.histogram(span, "batch_size"),
        "confidence": lambda: queries.histogram(span, "score"),
        "classes": lambda: queries.classes(span),
        "class mix": lambda: queries.class_mix(span),
        "versions": lambda: queries.versions(span),
        "least confident": lambda: queries.least_confident(span),
        "drift": lambda: queries.drift(before, after),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--limit-s", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, help="of a log that there is already; default: one made here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="analytics-") as made:
        folder = options.folder or Path(made)
        report: dict[str, Any] = {}
        if not options.folder:
            start = time.perf_counter()
            for number in range(DAYS):
                log_day(folder, FIRST + timedelta(days=number), options.rows // DAYS, version=f"v{1 + number // 5}")
            report["rows"], report["made_s"] = options.rows, round(time.perf_counter() - start, 1)
            report["etl_s"] = round(timed(lambda: etl.run(folder)), 1)
        asked = questions(PredictionLogQueries(folder))
        first = {name: timed(ask) for name, ask in asked.items()}
        again = {name: statistics.median(timed(ask) for _ in range(REPEATS)) for name, ask in asked.items()}
    report["first_s"], report["median_s"] = ({n: round(s, 3) for n, s in each.items()} for each in (first, again))
    print(json.dumps(report, indent=2))
    if slow := [name for name in asked if max(first[name], again[name]) > options.limit_s]:
        sys.exit(f"over {options.limit_s} s: {', '.join(slow)}")


if __name__ == "__main__":
    main()
