"""Measure the analytics page's queries on a large prediction log: ``python -m benchmarks.analytics_queries``.

The benchmark writes a random log with DuckDB, a tenth of the rows for each of ten days, runs the real ETL over it, and
runs each query of ``frontend.insights`` over all days. Exit code 1: a query took longer than ``--limit-s``.
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

from frontend.insights import Insights, Span
from serve_app.analytics import etl
from tests.support.logged import log_day

DAYS, FIRST, REPEATS = 10, date(2026, 3, 1), 5


def timed(function: Callable[[], Any]) -> float:
    """Return how many seconds a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def queries_of(insights: Insights) -> dict[str, Callable[[], Any]]:
    """Return the page's queries over all days, and the drift of the second half against the first."""
    days = insights.days()
    span, half = Span(days[0], days[-1]), len(days) // 2
    before, after = Span(days[0], days[half - 1]), Span(days[half], days[-1])
    return {
        "volume": lambda: insights.volume(span),
        "errors": lambda: insights.errors(span),
        "phases": lambda: insights.phases(span),
        "batch sizes": lambda: insights.histogram(span, "batch_size"),
        "confidence": lambda: insights.histogram(span, "score"),
        "classes": lambda: insights.classes(span),
        "class mix": lambda: insights.class_mix(span),
        "versions": lambda: insights.versions(span),
        "least confident": lambda: insights.least_confident(span),
        "drift": lambda: insights.drift(before, after),
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
        queries = queries_of(Insights(folder))
        first = {name: timed(query) for name, query in queries.items()}
        median = {name: statistics.median(timed(query) for _ in range(REPEATS)) for name, query in queries.items()}
    report["first_s"] = {name: round(seconds, 3) for name, seconds in first.items()}
    report["median_s"] = {name: round(seconds, 3) for name, seconds in median.items()}
    print(json.dumps(report, indent=2))
    if slow := [name for name in queries if max(first[name], median[name]) > options.limit_s]:
        sys.exit(f"over {options.limit_s} s: {', '.join(slow)}")


if __name__ == "__main__":
    main()
