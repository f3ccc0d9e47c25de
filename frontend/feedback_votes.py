"""Count the votes in a feedback folder, for the Analytics page. This file knows no Streamlit."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

MAX_VOTES = 5000
"""Most votes that are read, newest first: each is a file."""


class VoteCount(NamedTuple):
    """What people said about the answers.

    Attributes:
        votes: Answers that got a vote, at most MAX_VOTES.
        right: How many of them were right; votes that only name a class count as neither.
        wrong: How many were wrong.
        by_version: ``version``, ``votes`` and ``right`` as a share, one row per version of the model.
    """

    votes: int
    right: int
    wrong: int
    by_version: pd.DataFrame


def count_votes(folder: Path, first: date, last: date) -> VoteCount:
    """Count the votes from ``first`` to ``last`` (UTC); the last vote on an answer counts.

    A file that cannot be read, or is no vote, is left out.
    """
    votes: dict[tuple[Any, Any], dict[str, Any]] = {}
    for path in _paths(folder / "votes", first, last):
        with suppress(OSError, ValueError, KeyError, TypeError):
            vote = json.loads(path.read_bytes())
            votes[vote["request_id"], vote["index"]] = {"version": vote.get("version"), "right": vote.get("correct")}
    table = pd.DataFrame(votes.values(), columns=["version", "right"])
    grouped = table.groupby("version", dropna=False)["right"]
    by_version = pd.DataFrame({"votes": grouped.size(), "right": grouped.agg(_share)}).reset_index()
    answers = table["right"].tolist()
    return VoteCount(len(table), answers.count(True), answers.count(False), by_version)


def newest_vote_ns(folder: Path) -> int:
    """Return when a vote was last added or deleted, in ns since 1970; 0 without votes."""
    try:
        return (folder / "votes").stat().st_mtime_ns
    except OSError:
        return 0


def _paths(folder: Path, first: date, last: date) -> list[Path]:
    """Return the newest votes of these days, oldest first; a vote's name begins with its time in ns."""
    named = []
    for path in folder.glob("[0-9]*.json"):
        with suppress(ValueError, OverflowError, OSError):
            day = datetime.fromtimestamp(int(path.name.partition("-")[0]) / 1e9, UTC).date()
            if first <= day <= last:
                named.append(path)
    return sorted(named)[-MAX_VOTES:]


def _share(answers: pd.Series[Any]) -> float | None:
    known = [answer for answer in answers if isinstance(answer, bool)]
    return sum(known) / len(known) if known else None
