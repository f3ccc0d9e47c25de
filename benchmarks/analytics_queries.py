"""Measure the analytics page's queries on a large prediction log: ``python -m benchmarks.analytics_queries``.

The benchmark writes a random log with DuckDB, a tenth of the rows for each of ten days, runs the real ETL over it, and
runs each query of ``frontend.prediction_log_queries``. Exit code 1: a query took longer than ``--limit-s``.
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


def timed(function: Callable[[], Any]) -> float:
    """Return how many seconds a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def queries_of(log: PredictionLogQueries) -> dict[str, Callable[[], Any]]:
    """Return the page's queries over all days, and the drift of the second half against the first."""
    days = log.days()
    span, half = DateRange(days[0], days[-1]), len(days) // 2
    before, after = DateRange(days[0], days[half - 1]), DateRange(days[half], days[-1])
    return {
        "volume": lambda: log.volume(span),
        "statuses": lambda: log.statuses(span),
        "phase quantiles": lambda: log.phase_quantiles(span),
        "batch sizes": lambda: log.histogram(span, "batch_size"),
        "confidence": lambda: log.histogram(span, "score"),
        "classes": lambda: log.classes(span),
        "class mix": lambda: log.class_mix(span),
        "versions": lambda: log.versions(span),
        "least confident": lambda: log.least_confident(span),
        "drift": lambda: log.drift(before, after),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--limit-s", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, help="an existing log; default: a new one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="analytics-") as temporary:
        folder = options.folder or Path(temporary)
        report: dict[str, Any] = {}
        if not options.folder:
            start = time.perf_counter()
            for number in range(DAYS):
                log_day(folder, FIRST + timedelta(days=number), options.rows // DAYS, version=f"v{1 + number // 5}")
            report["rows"], report["write_s"] = options.rows, round(time.perf_counter() - start, 1)
            report["etl_s"] = round(timed(lambda: etl.run(folder)), 1)
        queries = queries_of(PredictionLogQueries(folder))
        first = {name: timed(query) for name, query in queries.items()}
        median = {name: statistics.median(timed(query) for _ in range(REPEATS)) for name, query in queries.items()}
    report["first_s"] = {name: round(seconds, 3) for name, seconds in first.items()}
    report["median_s"] = {name: round(seconds, 3) for name, seconds in median.items()}
    print(json.dumps(report, indent=2))
    if slow := [name for name in queries if max(first[name], median[name]) > options.limit_s]:
        sys.exit(f"over {options.limit_s} s: {', '.join(slow)}")


if __name__ == "__main__":
    main()
