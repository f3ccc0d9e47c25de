"""What several commands share: texts, fractions, and how they end when they cannot do their work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

# Arguments with one meaning in several commands.
WEIGHTS_HELP = "imagenet, demo or a .safetensors file."
LABELED_HELP = "Folder with a sub-folder of images per class, or CSV with the columns path and label."
OUT_HELP = "Folder for the weights, unchanged, and their new card."


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an expected error into one line on stderr and exit code 1; other errors keep their traceback."""
    from serve_app.errors import ServiceError  # after --help has been answered

    try:
        yield
    except (ServiceError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def fraction(text: str) -> float:
    """Parse an option's number between 0 and 1, both excluded."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise typer.BadParameter(f"{text!r} is not a number between 0 and 1 (both excluded)")
    return value
