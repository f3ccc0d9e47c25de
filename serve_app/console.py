"""Progress lines that the command-line programs print for the person who started them."""

from __future__ import annotations


def say(message: str) -> None:
    """Print one progress line at once, also where the output is a pipe."""
    print(f"· {message}", flush=True)
