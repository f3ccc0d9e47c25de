"""A service that is stopped in the middle of its work: what it finishes, and what the next start goes on with."""

from __future__ import annotations

import httpx2
import pyarrow.parquet as pq
import pytest

from serve_app.batch.job_store import JobStore
from serve_app.prediction_log_format import RAW
from tests.support.configs import local, tuned
from tests.support.polling import wait_for
from tests.support.running import start
from tests.support.services import IN_FLIGHT, JOB_COPIES, StoppedService

pytestmark = pytest.mark.ends_service


def test_a_stop_lets_requests_finish_and_loses_no_row(stopped_service: StoppedService) -> None:
    """SIGTERM, as a container's stop sends it: the request in flight is answered and logged, then all processes end."""
    assert stopped_service.response.json()["summary"] == {"ok": IN_FLIGHT, "failed": 0}
    assert stopped_service.exit_status == 0
    rows = pq.read_table(stopped_service.folder / "predictions" / RAW).to_pylist()
    assert sum(row["request_id"] == stopped_service.response.json()["id"] for row in rows) == IN_FLIGHT
    assert stopped_service.survivors == []


def test_a_job_outlives_the_service(stopped_service: StoppedService, mixed_photos: dict[str, bytes]) -> None:
    """A job in progress when the service stops goes on when a service starts again; each image has one row."""
    folder, job = stopped_service.folder / "jobs", stopped_service.job
    total = JOB_COPIES * len(mixed_photos)
    left = JobStore(folder).state(job)
    assert left.status == "running"
    assert 0 < left.progress.done < total
    config = tuned(local(), "Ingress", jobs={"folder": str(folder)})
    with start(config, page=False) as service, httpx2.Client(base_url=service.api, timeout=60) as http:
        ended = wait_for(
            lambda: (state := http.get(f"/v1/jobs/{job}").json())["status"] not in ("queued", "running") and state,
            what="the end of the job",
        )
        assert (ended["status"], ended["progress"]) == (
            "succeeded",
            {"total": total, "done": total, "failed": 3 * JOB_COPIES},
        )
        rows = http.get(f"/v1/jobs/{job}/results").json()
    assert sorted(row["path"] for row in rows) == sorted(
        f"{copy}/{name}" for copy in range(JOB_COPIES) for name in mixed_photos
    )
