"""The Status and Batch jobs pages against the real API; no worker runs, so jobs stay queued."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from frontend.api_client import ApiClient, ProblemError
from serve_app.config import JobsConfig
from tests.support.local_service import LocalService


@pytest.fixture
def jobs_page(client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    def script() -> None:
        from frontend.api_client import ApiClient
        from frontend.views.batch_jobs import show_batch_jobs

        show_batch_jobs(ApiClient())

    monkeypatch.setattr("frontend.api_client.ApiClient", lambda: client)
    return AppTest.from_function(script, default_timeout=30)


def test_status_page(client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows readiness and the counters."""

    def script() -> None:
        from frontend.api_client import ApiClient
        from frontend.views.status import show_status

        show_status(ApiClient())

    monkeypatch.setattr("frontend.api_client.ApiClient", lambda: client)
    page = AppTest.from_function(script, default_timeout=30).run()
    assert not page.exception
    assert "Ready" in page.success[0].value
    assert {metric.label for metric in page.metric} == {"Uptime", "Images", "Failed", "In flight", "Mean batch size"}


def test_jobs_that_are_off_are_explained(jobs_page: AppTest, client: ApiClient) -> None:
    """A service without batch jobs gets a page with the API's explanation."""
    jobs_page.run()
    assert not jobs_page.exception
    with pytest.raises(ProblemError) as off:
        client.jobs()
    assert "Batch jobs are switched off" in jobs_page.info[0].value
    assert str(off.value) in jobs_page.info[0].value


def test_a_job_from_a_prefix(jobs_page: AppTest, client: ApiClient, service: LocalService, tmp_path: Path) -> None:
    """A forbidden prefix shows the API's reason; an allowed one becomes a queued job that can be cancelled."""
    service.configure(jobs=JobsConfig(folder=str(tmp_path), sources=("s3://photos/in",)))
    jobs_page.run()
    assert "No jobs yet" in jobs_page.info[0].value
    jobs_page.text_input[0].set_value("s3://photos/other").run()
    jobs_page.button[0].click().run()
    with pytest.raises(ProblemError) as forbidden:
        client.submit_prefix("s3://photos/other")
    assert str(forbidden.value) in jobs_page.error[0].value
    jobs_page.text_input[0].set_value("s3://photos/in/2026").run()
    jobs_page.button[0].click().run()
    assert not jobs_page.exception
    assert jobs_page.subheader[0].value == "s3://photos/in/2026"
    job = jobs_page.query_params["job"]
    next(button for button in jobs_page.button if button.label == "Cancel").click().run()
    assert any("cancelled" in text.value for text in jobs_page.markdown)
    jobs_page.query_params["job"] = "unknown"
    jobs_page.run()
    assert "Unknown job" in jobs_page.error[0].value
    assert job in {button.key for button in jobs_page.button}
