"""What several commands share: arguments, and how they end when they cannot do their work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from serve_app.errors import ServiceError


@contextmanager
def exit_on(*errors: type[BaseException], code: int = 1, note: str = "") -> Iterator[None]:
    """Turn an expected error, by default ServiceError or OSError, into a message on stderr and an exit code.

    Other errors keep their traceback. The message is one line, unless a ServiceError lists several images.
    """
    expected = errors or (ServiceError, OSError)
    try:
        yield
    except expected as error:
        text = str(error) if isinstance(error, ServiceError) else " ".join(str(error).split())
        typer.echo(f"error: {text}{note}", err=True)
        raise typer.Exit(code) from None


def fraction(text: str) -> float:
    """Parse an option's number between 0 and 1, both excluded."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise typer.BadParameter(f"{text!r} is not a number between 0 and 1 (both excluded)")
    return value


LABELED_HELP = "Folder with a sub-folder of images per class, or CSV with the columns path and label."
Weights = Annotated[str, Argument(metavar="WEIGHTS", help="imagenet, demo or a .safetensors file.")]
LabeledImages = Annotated[Path, Argument(metavar="DATA", exists=True, help=LABELED_HELP)]
Out = Annotated[Path, Argument(metavar="OUT", help="Folder for the weights, unchanged, and their new card.")]
Precision = Annotated[float, Option(parser=fraction, help="Target accuracy above the threshold.")]
