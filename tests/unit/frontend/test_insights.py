"""What the Analytics page shows of a prediction log that its real ETL made."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from frontend.insights import Insights, Span, compare, quantile
from serve_app.analytics import etl
from tests.support.logged import CLASSES, log_day

DAYS = [date(2026, 3, n) for n in range(1, 7)]
CALM, SAME, DOUBLED, BLURRED, GREEN, _ = (Span(day, day) for day in DAYS)
IMAGES = 20_000
SCRIPT = "from frontend.analytics import show_analytics\nshow_analytics()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
def insights(folder: Path) -> Insights:
    return Insights(folder)


def test_counts(insights: Insights) -> None:
    assert insights.days() == DAYS[:5]
    errors = dict(insights.errors(CALM).itertuples(index=False))
    assert sum(errors.values()) == IMAGES
    assert insights.volume(CALM)["images"].sum() == IMAGES
    assert len(insights.volume(CALM)["hour"].unique()) == 24
    classes = insights.classes(DOUBLED).set_index("label")["images"]
    assert classes.index[0] == "cat"
    assert classes["cat"] / classes["dog"] == pytest.approx(2, rel=0.1)
    assert set(classes.index) == set(CLASSES)


def test_percentiles_are_those_of_the_rows(insights: Insights, folder: Path) -> None:
    exact = pd.read_parquet(folder / etl.DAYS / f"{DAYS[0]}.parquet")["total_ms"]
    found = insights.phases(CALM)["total_ms"]
    assert found == pytest.approx([exact.quantile(q) for q in (0.5, 0.95, 0.99)], rel=0.05)


def test_least_confident(insights: Insights) -> None:
    found = insights.least_confident(CALM, 10)["score"]
    assert list(found) == sorted(found)
    assert found.max() < 0.1


def test_versions_side_by_side(insights: Insights) -> None:
    assert list(insights.versions(GREEN)["version"]) == ["v1", "v2"]


@pytest.mark.parametrize(
    ("now", "drifted"),
    [(SAME, {}), (DOUBLED, {"class mix": "cat"}), (BLURRED, {"sharpness": ""})],
    ids=("an unchanged stream", "one class doubled", "images blurred"),
)
def test_drift_shows_where_it_is_and_nowhere_else(insights: Insights, now: Span, drifted: dict[str, str]) -> None:
    found = {each.what: each for each in insights.drift(CALM, now)}
    assert {what for what, each in found.items() if each.level != "none"} == set(drifted)
    assert all(found[what].most.startswith(name) for what, name in drifted.items())


def test_the_numbers_of_drift() -> None:
    """Worked out by hand."""
    same = compare("x", {"a": 500, "b": 500}, {"a": 500, "b": 500})
    assert (same.psi, same.js, same.level) == (0, 0, "none")
    moved = compare("x", {"a": 500, "b": 500}, {"a": 800, "b": 200})
    assert moved.psi == pytest.approx(0.4159, abs=1e-4)  # 0.3 ln 1.6 - 0.3 ln 0.4
    assert moved.chance == pytest.approx(0.002)
    assert (moved.level, moved.most) == ("large", "a: 50.0% → 80.0%")
    assert compare("x", {"a": 10}, {"b": 10}).js == pytest.approx(1, abs=0.01)
    assert compare("x", {"a": 5, "b": 5}, {"a": 7, "b": 3}).level == "none"  # ten images say nothing


def test_quantile_within_a_bin() -> None:
    bins = pd.DataFrame({"low": [0.0, 10.0], "high": [10.0, 20.0], "images": [50, 50]})
    assert [quantile(bins, q) for q in (0.25, 0.5, 0.75, 1)] == [5, 10, 15, 20]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, folder: Path) -> AppTest:
    monkeypatch.setenv("PREDICTION_LOG", str(folder))
    return AppTest.from_string(SCRIPT, default_timeout=30)


def test_page(page: AppTest) -> None:
    """All of it, for the days that are chosen at first; then one day compared with another."""
    page.run()
    assert not page.exception
    assert page.metric[0].value == f"{IMAGES * 4 + 2000:,}"
    assert [each.value for each in page.subheader] == [
        *("Time per image, ms", "Images in a batch", "Classes", "Confidence", "Versions", "Drift")
    ]
    page.date_input[0].set_value((DAYS[2], DAYS[2])).run()
    assert not page.exception
    page.date_input(key="baseline").set_value((DAYS[0], DAYS[1])).run()
    assert not page.exception
    drift = page.dataframe[-1].value.set_index("what")["level"]
    assert dict(drift) == {"class mix": "small"} | dict.fromkeys(
        ("score", "brightness", "contrast", "sharpness"), "none"
    )


def test_page_without_a_log_says_how_to_get_one(page: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREDICTION_LOG", str(tmp_path))
    page.run()
    assert "serve_app.analytics.etl" in page.info[0].value
    monkeypatch.delenv("PREDICTION_LOG")
    page.run()
    assert "user_config" in page.info[0].value
