"""How much a feedback folder may hold, and for how long."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import FeedbackConfig
from serve_app.errors import OverloadedError
from serve_app.observability import feedback_store
from serve_app.observability.feedback_store import Feedback, Vote, labeled_images, read_votes

DAY_S = 86400


def vote(request_id: str = "r", label: str | None = "cow") -> Vote:
    return Vote(
        time=0, request_id=request_id, index=0, correct=True, label=label, version=None, caller=None, image=None
    )


def store(folder: Path, **limits: Any) -> Feedback:
    return Feedback(FeedbackConfig(folder=str(folder), keep_images=True, **limits))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_full_folder_takes_no_more_votes(tmp_path: Path) -> None:
    """The error names the limit; votes of other replicas and of the time before a restart count."""
    for _ in range(2):
        store(tmp_path).keep(vote())
    feedback = store(tmp_path, max_votes=3)
    feedback.keep(vote())
    for full in (feedback, store(tmp_path, max_votes=3)):
        with pytest.raises(OverloadedError, match=r"holds 3 votes \(limit: `feedback\.max_votes` = 3\)"):
            full.keep(vote())
    assert len(files(tmp_path)) == 3


def test_a_full_folder_takes_votes_without_images(tmp_path: Path) -> None:
    """The bytes of the images are bounded, and votes are small."""
    feedback = store(tmp_path, max_kept_bytes=250)
    feedback.keep(vote("a"), (b"1" * 100, "png"))
    feedback.keep(vote("b"), (b"2" * 100, "png"))
    for full in (feedback, store(tmp_path, max_kept_bytes=250)):
        with pytest.raises(OverloadedError, match=r"`feedback\.max_kept_bytes` = 250"):
            full.keep(vote("c"), (b"3" * 100, "png"))
    feedback.keep(vote("c"))
    assert len(labeled_images(tmp_path)) == 2


def test_old_votes_and_images_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those before the time, together, so no vote that stays names a deleted image."""
    feedback = store(tmp_path)
    feedback.keep(vote("old"), (b"old", "png"))
    feedback.keep(vote("again"), (b"again", "png"))
    for path in files(tmp_path):
        os.utime(path, (time.time() - 9 * DAY_S,) * 2)
    feedback.keep(vote("new"), (b"again", "png"))
    limited = store(tmp_path, keep_days=8, max_votes=2)
    limited.keep(vote("last", None))
    assert [each.request_id for each in read_votes(tmp_path)] == ["new", "last"]
    assert [image.path.read_bytes() for image in labeled_images(tmp_path)] == [b"again"]
    assert len(files(tmp_path)) == 3


def test_a_folder_is_counted_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator empties it, and votes are taken again without a restart."""
    feedback = store(tmp_path, max_votes=1)
    feedback.keep(vote())
    (tmp_path / "votes").joinpath(files(tmp_path)[0].name).unlink()
    with pytest.raises(OverloadedError):
        feedback.keep(vote())
    monkeypatch.setattr(feedback_store, "COUNT_S", -1)
    feedback.keep(vote())
