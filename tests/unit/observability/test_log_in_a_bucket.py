"""The prediction log in a bucket, on a stand-in for S3: from the service's rows to the Analytics page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from frontend.prediction_log_queries import DateRange, PredictionLogQueries
from serve_app.analytics import etl
from serve_app.config import PredictionLogConfig
from serve_app.deadline import Deadline
from serve_app.errors import InvalidImageError
from serve_app.messages import ClassifyRequest, RequestContext
from serve_app.observability.prediction_log import PredictionLog
from serve_app.prediction_log_format import RAW
from tests.support.bucket import bucket

BUCKET, PREFIX = "photos-logs", "logs/predictions"
CONFIG = PredictionLogConfig(folder=f"s3://{BUCKET}/{PREFIX}", rows_per_file=40)


@pytest.fixture
def s3() -> Iterator[Any]:
    with bucket(BUCKET) as client:
        yield client


def write(config: PredictionLogConfig, rows: int) -> PredictionLog:
    """Write rows as a replica does that starts, serves and stops."""
    log = PredictionLog(config)
    for number in range(rows):
        request = ClassifyRequest(bytes(1000), 2, context=RequestContext(f"req_{number}", 0, Deadline(60)))
        log.add(request, "main", InvalidImageError("no image"), 33.5)
    log.close()
    return log


def keys(s3: Any) -> list[str]:
    return [each["Key"] for each in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def move(s3: Any, folder: Path) -> None:
    """Do what `aws s3 mv --recursive` does in docs/analytics.md."""
    (folder / RAW).mkdir(exist_ok=True)
    for key in keys(s3):
        s3.download_file(BUCKET, key, str(folder / RAW / Path(key).name))
        s3.delete_object(Bucket=BUCKET, Key=key)


def test_only_objects_with_rows_are_written(s3: Any) -> None:
    """Nodes may put objects below a prefix (cluster/ec2-stack.yaml), and neither test the bucket nor create folders."""
    log = write(CONFIG, 100)
    assert (log.written, log.dropped, log.error) == (100, 0, None)
    assert len(keys(s3)) == 3
    assert all(key.startswith(f"{PREFIX}/{RAW}/") and key.endswith(".parquet") for key in keys(s3))


def test_rows_of_several_replicas_reach_the_page(s3: Any, tmp_path: Path) -> None:
    """Moved to a folder, they are counted by the page, before and after the ETL; a second move adds the new ones."""
    for replicas, expected in ((2, 200), (1, 300)):
        for _ in range(replicas):
            write(CONFIG, 100)
        move(s3, tmp_path)
        log = PredictionLogQueries(tmp_path)
        days = DateRange(min(log.days()), max(log.days()))
        assert int(log.statuses(days)["images"].sum()) == expected
        report = etl.run(tmp_path)
        assert (report.rejected_files, report.rejected_rows, report.duplicates) == ([], 0, 0)
        assert int(PredictionLogQueries(tmp_path).statuses(days)["images"].sum()) == expected


def test_a_bucket_that_does_not_exist_loses_rows_and_stops_nothing(s3: Any) -> None:
    """The rows wait; the reason is in `error`, which /v1/status shows."""
    log = write(PredictionLogConfig(folder="s3://no-such-bucket/predictions"), 10)
    assert (log.written, log.dropped) == (0, 10)
    assert log.error is not None
