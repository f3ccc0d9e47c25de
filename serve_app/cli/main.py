"""All commands under one name."""

from __future__ import annotations

import typer

from serve_app.cli.deploy import deploy
from serve_app.cli.etl import etl
from serve_app.cli.keys import keys
from serve_app.cli.predict import predict
from serve_app.cli.run import run

app = typer.Typer(
    name="serve-app",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(deploy)
app.add_typer(keys)
app.command()(predict)
app.command()(etl)


@app.callback()
def _group() -> None:
    """Classify photos: serve a model, run batch jobs, train your own classes."""


def main() -> None:
    """Run the command that the arguments name."""
    app()
