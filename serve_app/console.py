"""Progress messages of the commands."""

from __future__ import annotations


def say(message: str) -> None:
    """Print one line of progress, at once even where output is buffered."""
    print(f"· {message}", flush=True)
