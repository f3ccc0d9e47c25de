"""The background thread that keeps log and votes within their bounds: what it does when."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from serve_app.analytics import upkeep
from serve_app.analytics.upkeep import DAY_S, ETL_S, Upkeep, run_etl_command
from serve_app.config import FeedbackConfig, IngressConfig, PredictionLogConfig
from serve_app.observability.feedback_store import Feedback, Vote, read_votes
from serve_app.prediction_log_format import RAW
from tests.support.prediction_rows import days, row, write_raw

NOON_S = 1_772_366_400.0  # 2026-03-01T12:00Z


class Service:
    """Its settings, a clock, and how often the ETL was run."""

    def __init__(self, folder: Path) -> None:
        self.config = IngressConfig(prediction_log=PredictionLogConfig(folder=str(folder)))
        self.now_s, self.runs = NOON_S, 0
        self.upkeep = Upkeep(lambda: self.config, self._run, lambda: self.now_s)

    def _run(self, config: PredictionLogConfig) -> None:
        self.runs += 1


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def write_at(folder: Path, name: str, time_s: float) -> None:
    write_raw(folder, name, [row(1)])
    os.utime(folder / RAW / f"{name}.parquet", (time_s, time_s))


def test_the_etl_runs_once_a_day_and_whenever_rows_have_waited(service: Service, tmp_path: Path) -> None:
    """Without new rows once a day, to delete what is old; with rows after ten minutes, also after a failure."""
    for _ in range(3):
        service.upkeep.tick()
    assert service.runs == 1
    write_at(tmp_path, "a", NOON_S)
    service.now_s += ETL_S - 1
    service.upkeep.tick()
    assert service.runs == 1
    service.now_s += 2
    for _ in range(3):
        service.upkeep.tick()
    assert service.runs == 2  # the file is still there: the run failed, and the next one waits
    service.now_s += ETL_S + 1
    service.upkeep.tick()
    assert service.runs == 3
    (tmp_path / RAW / "a.parquet").unlink()
    service.now_s += DAY_S
    service.upkeep.tick()
    assert service.runs == 4


def test_it_leaves_what_is_switched_off_and_buckets(service: Service) -> None:
    for log in (None, PredictionLogConfig(folder="s3://bucket/predictions")):
        service.config = IngressConfig(prediction_log=log)
        service.upkeep.tick()
    assert service.runs == 0


def test_old_votes_are_deleted_without_a_new_vote(service: Service, tmp_path: Path) -> None:
    """Once a day; votes without `keep_days` stay."""
    feedback = FeedbackConfig(folder=str(tmp_path / "votes"), keep_days=30)
    vote = Vote(time=0, request_id="a", index=0, correct=True, label=None, version=None, caller=None, image=None)
    Feedback(feedback).keep(vote)
    service.now_s = time.time()
    service.config = IngressConfig(feedback=feedback.model_copy(update={"keep_days": None}))
    service.upkeep.tick()
    service.config = IngressConfig(feedback=feedback)
    service.upkeep.tick()
    assert len(list(read_votes(tmp_path / "votes"))) == 1
    service.now_s += 31 * DAY_S
    service.upkeep.tick()
    assert list(read_votes(tmp_path / "votes")) == []


def test_the_command_keeps_the_bounds(tmp_path: Path) -> None:
    """The real `serve-app etl` in its own process: rows reach their day, and days that are too old are deleted."""
    write_raw(tmp_path, "a", [row(1)])  # of March 2026, long ago or in the future of this clock
    write_raw(tmp_path, "b", [row(2, hours=-365 * 24 * 20)])
    run_etl_command(PredictionLogConfig(folder=str(tmp_path), keep_days=1000))
    assert list((tmp_path / RAW).glob("*.parquet")) == []
    assert "2006-03-06" not in days(tmp_path)


def test_a_failing_command_is_logged_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that does not exist yet is no failure; any other reason of the command is in the service's log."""
    run_etl_command(PredictionLogConfig(folder=str(tmp_path)))
    assert caplog.text == ""
    (tmp_path / RAW).mkdir()
    monkeypatch.setattr(upkeep, "idle_python", lambda: ["sh", "-c", "echo 'error: the disk is full' >&2; exit 2"])
    run_etl_command(PredictionLogConfig(folder=str(tmp_path)))
    assert "prediction log: error: the disk is full" in caplog.text
