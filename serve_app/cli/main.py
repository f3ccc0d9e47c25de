"""All commands under one name."""

from __future__ import annotations

import typer

from serve_app.cli.calibrate import calibrate
from serve_app.cli.evaluate import evaluate
from serve_app.cli.publish import publish
from serve_app.cli.quantize import quantize
from serve_app.cli.run import run
from serve_app.cli.train import train

app = typer.Typer(
    name="serve-app",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(train)
app.command()(evaluate)
app.command()(calibrate)
app.command()(publish)
app.command()(quantize)


@app.callback()
def _group() -> None:
    """Classify photos: serve a model, run batch jobs, train your own classes."""


def main() -> None:
    """Run the command that the arguments name."""
    app()
