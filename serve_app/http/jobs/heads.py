"""The head of a batch job: looked up when the job is submitted, and copied into the job's folder."""

from __future__ import annotations

from serve_app.batch.job_records import JobHead
from serve_app.errors import HeadBackboneChangedError, InvalidParameterError
from serve_app.heads.stored import HeadEntry
from serve_app.heads.taught import is_taught_with
from serve_app.http.heads.use import HeadUse
from serve_app.model_card import ModelRef


def check_one_head(use: HeadUse) -> None:
    """Raise InvalidParameterError (422) if a job names several heads: its rows have one list of classes."""
    if len(use.heads) > 1:
        raise InvalidParameterError("head: a job takes one head; submit a job per head")


def head_of(use: HeadUse, model: ModelRef) -> tuple[JobHead, HeadEntry]:
    """Return the head as the job names it, and the version to copy.

    Raises:
        HeadBackboneChangedError: It belongs to other weights than the job's (409).
    """
    ((name, loaded),) = use.heads.items()
    if not is_taught_with(loaded.head, model):
        raise HeadBackboneChangedError(
            f"head {name!r} was taught on weights {loaded.entry.backbone.version!r}, and {model.version!r} serve now; "
            "teach it again"
        )
    return JobHead(name=name, version=loaded.entry.version), loaded.entry
