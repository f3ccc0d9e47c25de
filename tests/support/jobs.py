"""Submits jobs to a job store without HTTP."""

from __future__ import annotations

from serve_app.batch.job_store import UPLOAD, JobRequest, JobStore
from serve_app.config import EngineConfig, LimitsConfig, WeightsConfig
from serve_app.model_card import ModelRef


def submit_job(store: JobStore, location: str | None = None) -> str:
    """Submit a job for a folder, or for a zip if there is none; return the job's id."""
    draft = store.draft()
    if location is None:
        (draft / UPLOAD).write_bytes(b"zip")
    request = JobRequest(
        caller=None,
        source="photos",
        location=location,
        body_sha256="0",
        top_k=1,
        weights=WeightsConfig(),
        engine=EngineConfig(),
        limits=LimitsConfig(),
        model=ModelRef(name="resnet18", version="1", sha256="0" * 64),
    )
    return store.submit(draft, request, None)
