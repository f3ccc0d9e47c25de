"""The prediction log: what is in a row, what a stop, a full queue and a broken disk cost."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from serve_app.config import PredictionLogConfig, WeightsConfig
from serve_app.deadline import Deadline
from serve_app.errors import InvalidImageError
from serve_app.http.app import create_app
from serve_app.messages import ClassifyRequest, ClassifyResult, ImageInfo, ImageStats, Outcome, RequestContext
from serve_app.model_card import ModelRef
from serve_app.observability import prediction_log
from serve_app.observability.prediction_log import PredictionLog
from serve_app.prediction_log_format import RAW
from serve_app.validation import parse
from tests.support.faults import full_disk
from tests.support.local_service import LocalService
from tests.support.paths import ROOT
from tests.support.photos import make_photo

RESULT = ClassifyResult(
    class_ids=(3, 1),
    labels=("cat", "car"),
    scores=(0.75, 0.125),
    margin=0.625,
    entropy=0.5,
    model=ModelRef(name="resnet18", version="tiny-1", sha256="0" * 64),
    batch_size=4,
    timings_ms={"decode": 2.0, "queue": 1.0, "model": 20.0},
    image=ImageInfo(format="jpeg", width=640, height=480, orientation=1),
    image_stats=ImageStats(100.0, 50.0, 5.0),
)


def add(log: PredictionLog, number: int, outcome: Outcome = RESULT) -> None:
    """Add the row of request ``number``."""
    request = ClassifyRequest(bytes(1000), 2, context=RequestContext(f"req_{number}", 0, Deadline(60)))
    log.add(request, "main", outcome, 33.5)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob(f"{RAW}/*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_a_row_says_what_was_answered(tmp_path: Path) -> None:
    log = PredictionLog(PredictionLogConfig(folder=str(tmp_path)))
    add(log, 1)
    add(log, 2, InvalidImageError("broken"))
    log.close()
    good, bad = rows(tmp_path)
    assert abs(good.pop("time").timestamp() - time.time()) < 60
    assert good.pop("total_ms") == 33.5
    assert re.fullmatch("[0-9a-f]{32}", good.pop("request_uuid"))
    assert good == {
        **{"request_id": "req_1", "image": 0, "status": "ok", "variant": "main", "version": "tiny-1"},
        **{"class_id": 3, "label": "cat", "score": 0.75, "margin": 0.625, "entropy": 0.5},
        **{"format": "jpeg", "width": 640, "height": 480, "bytes": 1000},
        **{"brightness": 100.0, "contrast": 50.0, "sharpness": 5.0},
        **{"decode_ms": 2.0, "queue_ms": 1.0, "model_ms": 20.0, "batch_size": 4, "embedding": None},
        **{"head": None, "head_version": None},
    }
    assert (bad["status"], bad["bytes"], bad["label"]) == ("invalid_image", 1000, None)


def test_embeddings_are_kept_only_if_the_settings_say_so(tmp_path: Path) -> None:
    """With `embeddings`, rows hold 512 float16; by default none, even if the client asked for its embedding."""
    values = np.linspace(0, 30, 512, dtype=np.float32)
    outcome = dataclasses.replace(RESULT, features=values)
    for name, settings in (("off", {}), ("on", {"embeddings": True})):
        log = PredictionLog(parse(PredictionLogConfig, {"folder": str(tmp_path / name), **settings}))
        assert log.keeps_embeddings == bool(settings)
        add(log, 1, outcome)
        add(log, 2, InvalidImageError("broken"))
        log.close()
    assert [row["embedding"] for row in rows(tmp_path / "off")] == [None, None]
    kept, failed = (row["embedding"] for row in rows(tmp_path / "on"))
    assert failed is None
    np.testing.assert_array_equal(np.frombuffer(kept, "<f2"), values.astype(np.float16))


def test_rows_are_written_while_it_runs(tmp_path: Path) -> None:
    """After flush_s, or as soon as a file is full."""
    all_written = threading.Event()

    def on_flush(counts: dict[str, int]) -> None:
        if counts["written"] == 25:
            all_written.set()

    log = PredictionLog(PredictionLogConfig(folder=str(tmp_path), flush_s=0.1, rows_per_file=10), on_flush)
    for number in range(25):
        add(log, number)
    assert all_written.wait(60)
    assert [row["request_id"] for row in rows(tmp_path)] == [f"req_{n}" for n in range(25)]
    assert len(list(tmp_path.glob(f"{RAW}/*"))) >= 3
    log.close()


def test_what_cannot_be_written_waits_then_is_dropped_and_counted(tmp_path: Path) -> None:
    """Requests go on; once the folder is back, what waited is written."""
    flushed = threading.Event()
    config = PredictionLogConfig(folder=str(tmp_path / "log"), flush_s=3600, rows_per_file=10, max_buffered_rows=10)
    log = PredictionLog(config, on_flush=lambda counts: flushed.set())
    (tmp_path / "log").rename(tmp_path / "gone")
    (tmp_path / "log").write_text("a file in its place")
    for number in range(15):
        add(log, number)
    assert flushed.wait(60)
    assert log.snapshot() == {"written": 0, "buffered": 10, "dropped": 5}
    (tmp_path / "log").unlink()
    (tmp_path / "gone").rename(tmp_path / "log")
    log.close()
    assert log.snapshot() == {"written": 10, "buffered": 0, "dropped": 5}
    assert [row["request_id"] for row in rows(tmp_path / "log")] == [f"req_{n}" for n in range(10)]


def test_a_folder_that_cannot_be_stops_nothing(tmp_path: Path) -> None:
    """Rows wait, and the reason has no path; once the folder can be, they are written."""
    (tmp_path / "file").write_text("")
    log = PredictionLog(PredictionLogConfig(folder=str(tmp_path / "file" / "log"), flush_s=3600))
    assert log.error == "Not a directory"
    add(log, 1)
    assert log.snapshot() == {"written": 0, "buffered": 1, "dropped": 0}
    (tmp_path / "file").unlink()
    log.close()
    assert (log.snapshot()["written"], log.error) == (1, None)
    assert len(rows(tmp_path / "file" / "log")) == 1


def test_a_uri_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prediction_log\.folder nosuch://bucket/log: cannot be opened"):
        PredictionLog(PredictionLogConfig(folder="nosuch://bucket/log"))


def test_a_full_folder_takes_no_rows_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above `max_bytes`, rows are dropped and counted; the reason names the limit. Nothing else stops."""
    monkeypatch.setattr(prediction_log, "ROOM_CHECK_S", 0)
    (tmp_path / "days").mkdir()
    (tmp_path / "days" / "2026-03-01.parquet").write_bytes(bytes(20_000))
    log = PredictionLog(PredictionLogConfig(folder=str(tmp_path), flush_s=3600, max_bytes=20_000))
    add(log, 1)
    log._flush()
    assert log.snapshot() == {"written": 0, "buffered": 0, "dropped": 1}
    assert log.error == "the folder is full (limit: `prediction_log.max_bytes` = 20000)"
    (tmp_path / "days" / "2026-03-01.parquet").unlink()
    add(log, 2)
    log.close()
    assert (log.snapshot(), log.error) == ({"written": 1, "buffered": 0, "dropped": 1}, None)


def test_a_full_disk_stops_no_classification(
    weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are classified while nothing can be written; the status says why, and the rows are written later."""
    service = LocalService(weights)
    service.prediction_log = log = PredictionLog(PredictionLogConfig(folder=str(tmp_path), flush_s=3600))
    client = TestClient(create_app(service))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        assert client.post("/v1/classify", content=make_photo()).status_code == 200
        log._flush()
        state = {"written": 0, "buffered": 1, "dropped": 0, "error": "No space left on device"}
        assert client.get("/v1/status").json()["prediction_log"] == state
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    log.close()
    assert len(rows(tmp_path)) == 1


def test_a_relative_folder_is_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever Ray starts the replica."""
    monkeypatch.setenv("SERVE_APP_DATA", str(tmp_path))
    log = PredictionLog(PredictionLogConfig(folder="predictions"))
    add(log, 1)
    log.close()
    assert len(rows(tmp_path / "predictions")) == 1


KILLED = """
import sys, time
from tests.unit.observability.test_prediction_log import *
log = PredictionLog(PredictionLogConfig(folder=sys.argv[1], flush_s=0.2))
for number in range(10**9):
    add(log, number)
    print(number, flush=True)
    time.sleep(0.001)
"""


def test_a_killed_process_loses_no_more_than_is_said(tmp_path: Path) -> None:
    """After SIGKILL all files are complete, and at most flush_s and one write are missing."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        seen = [(time.monotonic(), int(process.stdout.readline())) for _ in range(1500)]
        os.kill(process.pid, signal.SIGKILL)
    found = [row["request_id"] for row in rows(tmp_path)]
    assert found == [f"req_{n}" for n in range(len(found))]
    sure = [number for at, number in seen if at < seen[-1][0] - 1]
    assert len(found) > max(sure, default=0)
    assert len(found) > 100


def test_the_api_logs_each_image(weights: WeightsConfig, tmp_path: Path) -> None:
    service = LocalService(weights)
    service.prediction_log = log = PredictionLog(PredictionLogConfig(folder=str(tmp_path)))
    client = TestClient(create_app(service))
    files = [("images", ("private name.jpg", make_photo(), "image/jpeg")), ("images", ("b", b"none", "image/jpeg"))]
    answer = client.post("/v1/classify", files=files)
    assert client.get("/v1/status").json()["prediction_log"]["buffered"] + log.written == 2
    log.close()
    found = sorted(rows(tmp_path), key=lambda row: row["image"])
    assert [row["status"] for row in found] == ["ok", "unsupported_image"]
    assert {row["request_id"] for row in found} == {answer.json()["id"]}
    assert found[0]["label"] == answer.json()["results"][0]["predictions"][0]["label"]
    assert "private" not in str(found)


def test_knobs() -> None:
    with pytest.raises(ValueError, match=r"folder: Field required"):
        parse(PredictionLogConfig, {"flush_s": 1})


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("a bug in the library"), pa.ArrowInvalid("odd")], ids=repr
)
def test_no_error_ends_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The first write fails with anything but OSError: the rows stay, and the next flush writes them."""
    flushed, attempts = threading.Event(), []
    real = prediction_log.write_rows

    def failing_once(*arguments: Any) -> None:
        attempts.append(arguments)
        if len(attempts) <= 2:  # ArrowInvalid has a second attempt, without the rows that do not fit
            raise error
        real(*arguments)

    monkeypatch.setattr(prediction_log, "write_rows", failing_once)
    config = PredictionLogConfig(folder=str(tmp_path), flush_s=0.05)
    log = PredictionLog(config, on_flush=lambda counts: flushed.set() if counts["written"] == 3 else None)
    for number in range(3):
        add(log, number)
    assert flushed.wait(60)
    log.close()
    assert log.snapshot() == {"written": 3, "buffered": 0, "dropped": 0}
    assert [row["request_id"] for row in rows(tmp_path)] == ["req_0", "req_1", "req_2"]


def test_metrics_that_fail_do_not_end_the_writer(tmp_path: Path) -> None:
    """on_flush raises each time; rows are written all the same."""
    twice, calls = threading.Event(), []

    def on_flush(counts: dict[str, int]) -> None:
        calls.append(counts)
        if len(calls) == 2:
            twice.set()
        raise RuntimeError("the metrics agent is gone")

    log = PredictionLog(PredictionLogConfig(folder=str(tmp_path), flush_s=0.05), on_flush)
    assert twice.wait(60)
    add(log, 1)
    log.close()
    assert log.snapshot() == {"written": 1, "buffered": 0, "dropped": 0}


@pytest.mark.parametrize(
    "changes", [{"class_ids": (2**40, 1)}, {"labels": ("\ud800", "car")}, {"scores": ("high", 0.1)}], ids=str
)
def test_a_row_that_does_not_fit_is_dropped_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A value that its column cannot hold costs one row, and not all rows after it."""
    log = PredictionLog(PredictionLogConfig(folder=str(tmp_path), flush_s=3600))
    for number in range(4):
        add(log, number, dataclasses.replace(RESULT, **changes) if number == 1 else RESULT)
    log.close()
    assert log.snapshot() == {"written": 3, "buffered": 0, "dropped": 1}
    assert [row["request_id"] for row in rows(tmp_path)] == ["req_0", "req_2", "req_3"]


def test_a_file_of_nothing_that_fits_is_not_written(tmp_path: Path) -> None:
    log = PredictionLog(PredictionLogConfig(folder=str(tmp_path), flush_s=3600))
    add(log, 1, dataclasses.replace(RESULT, labels=("\ud800", "car")))
    log.close()
    assert log.snapshot() == {"written": 0, "buffered": 0, "dropped": 1}
    assert rows(tmp_path) == []


def test_requests_with_one_id_have_keys_of_their_own(weights: WeightsConfig, tmp_path: Path) -> None:
    """A gateway sends the same X-Request-ID twice: the images of a request share the server's id, requests do not."""
    service = LocalService(weights)
    service.prediction_log = log = PredictionLog(PredictionLogConfig(folder=str(tmp_path)))
    client = TestClient(create_app(service))
    for _ in range(2):
        files = [("images", (name, make_photo(), "image/jpeg")) for name in ("a", "b")]
        client.post("/v1/classify", files=files, headers={"X-Request-ID": "gateway"})
    log.close()
    found = rows(tmp_path)
    assert {row["request_id"] for row in found} == {"gateway"}
    assert len({row["request_uuid"] for row in found}) == 2
    assert len({(row["request_uuid"], row["image"]) for row in found}) == 4
