"""Why a job failed, for its client: the source as the client named it, and no path of the server."""

from __future__ import annotations

import re

from serve_app.batch.job_records import JobState
from serve_app.batch.job_store import JobStore

# An absolute path: quoted, as in the text of an OSError, or up to a space or a punctuation mark. Not a part of an
# address (s3://bucket/photos), of a word (and/or) or of a relative path.
SERVER_PATH = r"""(?<=')/[^']+(?=')|(?<=")/[^"]+(?=")|(?:(?<![\w.:/\\-])|\bfile:/*)/[^\s'",;:()]+"""
HIDDEN = "…"


def hide_server_paths(state: JobState, jobs: JobStore) -> JobState:
    """Return a job's state whose error holds no path of the server; the job's log keeps them."""
    if state.error is None:
        return state
    error = hide_paths(state.error, jobs.input_path(state.id), state.source)
    return state.model_copy(update={"error": error})


def hide_paths(text: str, location: str, source: str) -> str:
    """Replace the location that a job reads by the name that the client gave, and every other absolute path by "…"."""
    known = re.escape(location.rstrip("/")) + r"(?![\w-]|\.\w)"
    return re.sub(
        f"(?P<known>{known})|{SERVER_PATH}", lambda found: source.rstrip("/") if found["known"] else HIDDEN, text
    )
