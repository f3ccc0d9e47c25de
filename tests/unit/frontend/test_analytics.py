"""The Analytics page and its queries, over a prediction log that the real ETL has summarized."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from frontend.api_client import ServerDownError
from frontend.prediction_log_queries import DateRange, PredictionLogQueries, measure_drift, quantile
from serve_app import prediction_log_format
from serve_app.analytics import etl
from tests.support.logged import CLASSES, log_day
from tests.support.prediction_rows import NOON, row, write_raw

DAYS = [date(2026, 3, n) for n in range(1, 7)]
FIRST, SAME, DOUBLED, BLURRED, TWO_VERSIONS, EMPTY = (DateRange(day, day) for day in DAYS)
IMAGES = 20_000
SCRIPT = """
import streamlit as st
from frontend.views.analytics import show_analytics
show_analytics(st.session_state["client"])
"""
WRITING = {"written": 5, "buffered": 0, "dropped": 0, "error": None}


class FakeClient:
    """An API client whose service reports this state of the prediction log, or does not respond."""

    def __init__(self, rows: dict[str, Any] | Exception | None) -> None:
        self.rows = rows

    def status(self) -> dict[str, Any]:
        if isinstance(self.rows, Exception):
            raise self.rows
        return {"prediction_log": self.rows}


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
    exact = pd.read_parquet(folder / prediction_log_format.DAYS / f"{DAYS[0]}.parquet")["total_ms"]
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
    rows = pd.read_parquet(folder / prediction_log_format.DAYS / f"{DAYS[4]}.parquet").groupby("version")
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
    page = AppTest.from_string(SCRIPT, default_timeout=60)
    page.session_state["client"] = FakeClient(WRITING)
    return page


def test_page(page: AppTest) -> None:
    """The page shows every section for the default days, and the drift of one day against a chosen baseline."""
    page.run()
    assert not page.exception
    assert page.metric[0].value == f"{IMAGES * 4 + 2000:,}"
    assert [subheader.value for subheader in page.subheader] == [
        *("Time per image, ms", "Batch size", "Classes", "Confidence", "Votes", "Versions", "Drift")
    ]
    assert not page.info
    assert not page.warning
    page.date_input[0].set_value((DAYS[2], DAYS[2])).run()
    assert not page.exception
    page.date_input(key="baseline").set_value((DAYS[0], DAYS[1])).run()
    assert not page.exception
    levels = page.dataframe[-1].value.set_index("metric")["level"]
    assert dict(levels) == {"class mix": "small"} | dict.fromkeys(
        ("score", "brightness", "contrast", "sharpness"), "none"
    )


def test_an_empty_log_says_what_will_appear(page: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And what is stored; the page names no path of the server. The first row takes its place."""
    monkeypatch.setenv("PREDICTION_LOG", str(tmp_path))
    page.run()
    assert "No image has been classified yet" in page.info[0].value
    assert "the most frequent classes" in page.markdown[0].value
    assert "No photos" in page.caption[0].value
    assert str(tmp_path) not in str([element.value for element in (*page.info, *page.markdown, *page.caption)])
    page.session_state["client"] = FakeClient(WRITING | {"error": "No space left on device"})
    page.run()
    assert not page.info  # a photo would not appear
    assert "the most frequent classes" in page.markdown[0].value
    page.session_state["client"] = FakeClient(WRITING)
    log_day(tmp_path, DAYS[0], 50)
    page.run()
    assert not page.info
    assert page.metric[0].value == "50"


def test_a_page_without_a_log_says_how_to_get_one(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREDICTION_LOG")
    page.session_state["client"] = FakeClient(None)
    page.run()
    assert "is switched off" in page.info[0].value
    for words in ("--no-log", "user_config", "PREDICTION_LOG"):
        assert words in page.info[1].value


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (None, "The prediction log is switched off, so nothing new appears here.** To switch it on"),
        (WRITING | {"error": "No space left on device", "buffered": 12}, "No space left on device.** Classification"),
        (ServerDownError("http://x does not respond as the API"), "The service does not respond"),
    ],
    ids=["switched off", "full disk", "server down"],
)
def test_days_are_shown_while_nothing_new_is_written(page: AppTest, rows: Any, sentence: str) -> None:
    """With the reason above them."""
    page.session_state["client"] = FakeClient(rows)
    page.run()
    assert not page.exception
    assert sentence in (*page.info, *page.warning)[0].value
    assert page.metric[0].value == f"{IMAGES * 4 + 2000:,}"


def test_a_log_of_errors_alone_is_shown(page: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first file that somebody tried was no photo: volume and times, and why there are no classes."""
    write_raw(tmp_path, "a", [row(n, status="unsupported_image", label=None, score=None) for n in range(3)])
    monkeypatch.setenv("PREDICTION_LOG", str(tmp_path))
    page.run()
    assert not page.exception
    assert [metric.value for metric in page.metric[:2]] == ["3", "100.00%"]
    assert any("No image of these days has a class" in caption.value for caption in page.caption)


def test_votes_are_counted(page: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of the selected days, the last one on each answer; without any, the page says what they are."""
    (tmp_path / "log").mkdir()
    write_raw(tmp_path / "log", "a", [row(1)])
    monkeypatch.setenv("PREDICTION_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FEEDBACK_FOLDER", str(tmp_path))
    page.run()
    assert any("No votes on these days" in caption.value for caption in page.caption)
    (tmp_path / "votes").mkdir()
    for number, (request, correct) in enumerate([("a", False), ("b", True), ("c", None), ("a", True)]):
        write_vote(tmp_path, NOON.timestamp() + number, {"request_id": request, "correct": correct})
    write_vote(tmp_path, NOON.timestamp() - 86400, {"request_id": "d", "correct": False})
    (tmp_path / "votes" / f"{int(NOON.timestamp() * 1e9):020d}-torn.json").write_text("")
    page.run()
    assert not page.exception
    assert {metric.label: metric.value for metric in page.metric}.items() >= {"Votes": "3", "Right": "100%"}.items()


def write_vote(folder: Path, time_s: float, vote: dict[str, Any]) -> None:
    name = f"{int(time_s * 1e9):020d}-0000.json"
    (folder / "votes" / name).write_text(json.dumps({"index": 0, "version": "v1", **vote}))
