"""The Status and Batch jobs pages against the real API; no worker runs, so jobs stay queued."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from frontend.api_client import ApiClient, ProblemError
from frontend.components.markdown import escape_markdown
from serve_app.config import JobsConfig
from tests.support.local_service import LocalService


def jobs_script() -> None:
    from frontend.api_client import ApiClient
    from frontend.views.batch_jobs import show_batch_jobs

    show_batch_jobs(ApiClient())


@pytest.fixture
def jobs_page(client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setattr("frontend.api_client.ApiClient", lambda: client)
    return AppTest.from_function(jobs_script, default_timeout=30)


@pytest.fixture
def takes_jobs(jobs_page: AppTest, service: LocalService, tmp_path: Path) -> Path:
    """The folder of jobs of a service that takes them from one bucket prefix."""
    service.configure(jobs=JobsConfig(folder=str(tmp_path), sources=("s3://photos/in",)))
    return tmp_path


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
    assert escape_markdown(off.value) in jobs_page.info[0].value


def test_a_job_from_a_prefix(jobs_page: AppTest, client: ApiClient, service: LocalService, tmp_path: Path) -> None:
    """A forbidden prefix shows the API's reason; an allowed one becomes a queued job that can be cancelled."""
    service.configure(jobs=JobsConfig(folder=str(tmp_path), sources=("s3://photos/in",)))
    jobs_page.run()
    assert "No jobs yet" in jobs_page.info[0].value
    jobs_page.text_input[0].set_value("s3://photos/other").run()
    jobs_page.button[0].click().run()
    with pytest.raises(ProblemError) as forbidden:
        client.submit_prefix("s3://photos/other")
    assert escape_markdown(forbidden.value) in jobs_page.error[0].value
    jobs_page.text_input[0].set_value("s3://photos/in/2026").run()
    jobs_page.button[0].click().run()
    assert not jobs_page.exception
    assert jobs_page.subheader[0].value == escape_markdown("s3://photos/in/2026")
    job = jobs_page.query_params["job"]
    next(button for button in jobs_page.button if button.label == "Cancel").click().run()
    assert any("cancelled" in text.value for text in jobs_page.markdown)
    jobs_page.query_params["job"] = "unknown"
    jobs_page.run()
    assert "Unknown job" in jobs_page.error[0].value
    assert job in {button.key for button in jobs_page.button}


def history(page: AppTest) -> set[str]:
    """Return the ids of the jobs in a page's history."""
    assert not page.exception
    return {button.key for button in page.button if button.key and len(button.key) == 32}


def visit(user: str | None = None, job: str | None = None) -> AppTest:
    """Open the page in a new browser session, as a signed-in user, with a job's link."""
    visitor = AppTest.from_function(jobs_script, default_timeout=30)
    if user:
        visitor.secrets["auth"] = {"client_id": "page"}
        visitor.user = {"is_logged_in": True, "iss": "https://id.example", "sub": user}
    if job:
        visitor.query_params["job"] = job
    return visitor.run()


def start(page: AppTest) -> str:
    """Start a job on a page; return its id."""
    page.text_input[0].set_value("s3://photos/in/2026").run()
    next(button for button in page.button if button.label == "Classify its images").click().run()
    assert not page.exception
    return str(page.query_params["job"])


def test_without_sign_in_a_session_lists_its_own_jobs(takes_jobs: Path) -> None:
    """Visitors share the page's API key, but see only jobs of their own session and those whose link they have."""
    alice, bob = visit(), visit()
    job, other = start(alice), start(bob)
    assert (history(alice.run()), history(bob.run())) == ({job}, {other})
    assert history(visit()) == set()
    linked = visit(job=job)
    assert linked.subheader[0].value == escape_markdown("s3://photos/in/2026")
    assert history(linked.run()) == {job}


def test_with_sign_in_a_user_finds_his_jobs_again(takes_jobs: Path) -> None:
    """Jobs belong to the user in every session; another user sees none of them, even with the link."""
    job = start(visit("alice"))
    assert history(visit("alice")) == {job}
    assert history(visit("bob")) == set()
    refused = visit("bob", job)
    assert "Unknown job" in refused.error[0].value
    assert history(refused) == set()
    assert "alice" not in "".join(path.read_text() for path in takes_jobs.glob("*/job.json"))
