"""The Analytics page and its queries, over a prediction log that the real ETL has summarized."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from frontend.prediction_log_queries import DateRange, PredictionLogQueries, measure_drift, quantile
from serve_app.analytics import etl
from tests.support.logged import CLASSES, log_day

DAYS = [date(2026, 3, n) for n in range(1, 7)]
FIRST, SAME, DOUBLED, BLURRED, TWO_VERSIONS, EMPTY = (DateRange(day, day) for day in DAYS)
IMAGES = 20_000
SCRIPT = "from frontend.views.analytics import show_analytics\nshow_analytics()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of five days: two alike, one class doubled, blurred images, two model versions."""
    folder = tmp_path_factory.mktemp("log")
    for day in DAYS[:2]:
        log_day(folder, day, IMAGES)
    log_day(folder, DAYS[2], IMAGES, doubled="cat")
    log_day(folder, DAYS[3], IMAGES, blur=0.5)
    for version in ("v1", "v2"):
        log_day(folder, DAYS[4], 1000, version=version)
    assert not etl.run(folder).rejected_files
    return folder


@pytest.fixture(scope="module")
def queries(folder: Path) -> PredictionLogQueries:
    return PredictionLogQueries(folder)


def test_counts(queries: PredictionLogQueries) -> None:
    """Every image is counted once by status, by hour and by class."""
    assert queries.days() == DAYS[:5]
    statuses = dict(queries.statuses(FIRST).itertuples(index=False))
    assert sum(statuses.values()) == IMAGES
    assert queries.volume(FIRST)["images"].sum() == IMAGES
    assert len(queries.volume(FIRST)["hour"].unique()) == 24
    classes = queries.classes(DOUBLED).set_index("label")["images"]
    assert classes.index[0] == "cat"
    assert classes["cat"] / classes["dog"] == pytest.approx(2, rel=0.1)
    assert set(classes.index) == set(CLASSES)


def test_phase_quantiles_match_the_rows(queries: PredictionLogQueries, folder: Path) -> None:
    """The histograms' quantiles are within 5 % of the exact ones."""
    exact = pd.read_parquet(folder / etl.DAYS / f"{DAYS[0]}.parquet")["total_ms"]
    estimated = queries.phase_quantiles(FIRST)["total_ms"]
    assert estimated == pytest.approx([exact.quantile(q) for q in (0.5, 0.95, 0.99)], rel=0.05)


def test_least_confident_rows_come_in_order(queries: PredictionLogQueries) -> None:
    """The rows with the lowest scores come first."""
    scores = queries.least_confident(FIRST, 10)["score"]
    assert list(scores) == sorted(scores)
    assert scores.max() < 0.1


def test_versions_side_by_side(queries: PredictionLogQueries, folder: Path) -> None:
    """Each version has a row with the mean score and the quantiles of its own images."""
    versions = queries.versions(TWO_VERSIONS).set_index("version")
    assert list(versions.index) == ["v1", "v2"]
    rows = pd.read_parquet(folder / etl.DAYS / f"{DAYS[4]}.parquet").groupby("version")
    assert list(versions["mean score"]) == pytest.approx(list(rows["score"].mean()))
    assert list(versions["p95 ms"]) == pytest.approx(list(rows["total_ms"].quantile(0.95)), rel=0.1)


def test_days_without_rows_are_named(queries: PredictionLogQueries) -> None:
    """A range without any day of the log raises an error with its first and last day."""
    with pytest.raises(LookupError, match="2026-03-06 to 2026-03-06"):
        queries.statuses(EMPTY)


@pytest.mark.parametrize(
    ("current", "drifted"),
    [(SAME, {}), (DOUBLED, {"class mix": "cat"}), (BLURRED, {"sharpness": ""})],
    ids=("an unchanged stream", "one class doubled", "images blurred"),
)
def test_drift_is_found_where_it_is_and_nowhere_else(
    queries: PredictionLogQueries, current: DateRange, drifted: dict[str, str]
) -> None:
    """Exactly the changed metrics have a level above none, and the changed class is named."""
    drifts = {drift.metric: drift for drift in queries.drift(FIRST, current)}
    assert {metric for metric, drift in drifts.items() if drift.level != "none"} == set(drifted)
    assert all(drifts[metric].largest_change.startswith(name) for metric, name in drifted.items())


def test_drift_formulas() -> None:
    """PSI, its expected value, JS divergence and level equal values computed by hand."""
    same = measure_drift("x", {"a": 500, "b": 500}, {"a": 500, "b": 500})
    assert (same.psi, same.js, same.level) == (0, 0, "none")
    changed = measure_drift("x", {"a": 500, "b": 500}, {"a": 800, "b": 200})
    assert changed.psi == pytest.approx(0.4159, abs=1e-4)  # 0.3 ln 1.6 - 0.3 ln 0.4
    assert changed.expected_psi == pytest.approx(0.002)
    assert (changed.level, changed.largest_change) == ("large", "a: 50.0% → 80.0%")
    assert measure_drift("x", {"a": 10}, {"b": 10}).js == pytest.approx(1, abs=0.01)
    assert measure_drift("x", {"a": 5, "b": 5}, {"a": 7, "b": 3}).level == "none"  # ten images: within the noise


def test_quantile_interpolates_within_a_bin() -> None:
    """A quantile lies on a straight line through its bin."""
    bins = pd.DataFrame({"low": [0.0, 10.0], "high": [10.0, 20.0], "images": [50, 50]})
    assert [quantile(bins, q) for q in (0.25, 0.5, 0.75, 1)] == [5, 10, 15, 20]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, folder: Path) -> AppTest:
    monkeypatch.setenv("PREDICTION_LOG", str(folder))
    return AppTest.from_string(SCRIPT, default_timeout=30)


def test_page(page: AppTest) -> None:
    """The page shows every section for the default days, and the drift of one day against a chosen baseline."""
    page.run()
    assert not page.exception
    assert page.metric[0].value == f"{IMAGES * 4 + 2000:,}"
    assert [subheader.value for subheader in page.subheader] == [
        *("Time per image, ms", "Batch size", "Classes", "Confidence", "Versions", "Drift")
    ]
    page.date_input[0].set_value((DAYS[2], DAYS[2])).run()
    assert not page.exception
    page.date_input(key="baseline").set_value((DAYS[0], DAYS[1])).run()
    assert not page.exception
    levels = page.dataframe[-1].value.set_index("metric")["level"]
    assert dict(levels) == {"class mix": "small"} | dict.fromkeys(
        ("score", "brightness", "contrast", "sharpness"), "none"
    )


def test_page_without_a_log_says_how_to_get_one(page: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty log names the command that summarizes it, but not its path; a page without a log names the setting."""
    monkeypatch.setenv("PREDICTION_LOG", str(tmp_path))
    page.run()
    assert "serve-app etl" in page.info[0].value
    assert str(tmp_path) not in page.info[0].value
    monkeypatch.delenv("PREDICTION_LOG")
    page.run()
    assert "user_config" in page.info[0].value
