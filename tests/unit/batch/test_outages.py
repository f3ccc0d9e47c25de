"""Errors that pass are told from those that come again at every try."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.batch.dataset import Decode, DecodeAndPredict, Predict
from serve_app.batch.outages import describe_outage, is_passing
from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.results import ResultsFolder
from serve_app.batch.worker import Decoder
from serve_app.config import WeightsConfig
from serve_app.errors import SourceError, SourceUnavailableError, WeightsError, WeightsUnavailableError
from serve_app.inference.card import load_card
from tests.support.faults import full_disk
from tests.support.photos import make_photo


@pytest.mark.parametrize(
    "number", ["ENOSPC", "EDQUOT", "EIO", "ESTALE", "ETIMEDOUT", "ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "EMFILE"]
)
def test_disk_and_network_errors_pass(number: str) -> None:
    error = OSError(getattr(errno, number), os.strerror(getattr(errno, number)), "/srv/jobs/1")
    assert is_passing(error)
    assert "/srv" not in (describe_outage(error) or "/srv")


@pytest.mark.parametrize("number", ["ENOENT", "EACCES", "EPERM", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "ELOOP"])
def test_wrong_names_and_missing_rights_stay(number: str) -> None:
    assert describe_outage(OSError(getattr(errno, number), "no")) is None


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("When getting information for key 'a': AWS Error NETWORK_CONNECTION during HeadObject: curlCode: 7", True),
        ("AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate.", True),
        ("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", True),
        ("AWS Error UNKNOWN (HTTP status 429) during HeadObject operation: No response body.", True),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)", True),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", False),
        ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", False),
        ("There is no item named 'a.jpg' in the archive", False),
    ],
)
def test_errors_of_buckets(text: str, passes: bool) -> None:
    """Pyarrow raises a plain OSError without a number for them."""
    assert is_passing(OSError(text)) == passes


def test_our_own_errors() -> None:
    assert describe_outage(SourceUnavailableError("away")) == "away"
    assert describe_outage(WeightsUnavailableError("away")) == "away"
    for error in (SourceError("wrong"), WeightsError("wrong"), ValueError("wrong")):
        assert describe_outage(error) is None


@pytest.fixture
def job(tmp_path: Path, weights: WeightsConfig) -> BatchJobConfig:
    """A listed job of one photo."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(make_photo(0, 64, 48))
    job = BatchJobConfig(source=str(tmp_path / "photos"), out=str(tmp_path / "out"), weights=weights, top_k=1)
    ResultsFolder(job.out).begin(job, load_card(weights), ["a.jpg"], 8)
    return job


@pytest.mark.parametrize(
    ("number", "is_outage"),
    [("ESTALE", True), ("ETIMEDOUT", True), ("EMFILE", True), ("EIO", False), ("ENOENT", False)],
)
def test_source_that_is_away_makes_no_rows(
    job: BatchJobConfig, monkeypatch: pytest.MonkeyPatch, number: str, is_outage: bool
) -> None:
    """Its images would stay errors for ever. A file that is missing or has an unreadable block is one, also later."""

    def read(*_arguments: object) -> bytes:
        raise OSError(getattr(errno, number), "reason")

    monkeypatch.setattr("serve_app.batch.sources.FolderSource.read", read)
    decode = Decoder(job)
    if is_outage:
        with pytest.raises(SourceUnavailableError, match="reason"):
            decode(0)
    else:
        assert decode(0).errors == [("unreadable", "cannot be read: reason")]


def test_worker_reports_an_outage_as_a_row(job: BatchJobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data would lose the type of the exception, and with it that another attempt can succeed."""
    stage, decode, predict = DecodeAndPredict(job), Decode(job), Predict(job)
    with monkeypatch.context() as patch:
        patch.setattr("serve_app.batch.results.pq.write_table", full_disk)
        assert "No space left" in stage({"shard": 0})["outage"]
        assert "No space left" in predict(decode({"shard": 0}))["outage"]
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "_read", full_disk)
        assert "No space left" in predict(decode({"shard": 0}))["outage"]
    assert stage({"shard": 0})["outage"] == ""
    assert predict(decode({"shard": 0})) == {"shard": 0, "images": 1, "errors": "{}", "outage": ""}


@pytest.mark.parametrize("stage", [DecodeAndPredict, Decode])
def test_worker_that_cannot_load_reports_it(job: BatchJobConfig, stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are away when a worker starts are an outage; wrong weights are not."""

    def away(spec: WeightsConfig) -> None:
        raise WeightsUnavailableError("weights x: cannot download")

    def wrong(spec: WeightsConfig) -> None:
        raise WeightsError("weights x: sha256 is 1, expected 2")

    monkeypatch.setattr("serve_app.batch.worker.load_card", away)
    row = stage(job)({"shard": 0})
    if stage is Decode:
        assert isinstance(row["crops"], np.ndarray)
        monkeypatch.undo()
        row = Predict(job)(row)
    assert row["outage"] == "weights x: cannot download"
    monkeypatch.setattr("serve_app.batch.worker.load_card", wrong)
    with pytest.raises(WeightsError):
        stage(job)
