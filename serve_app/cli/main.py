"""All commands under one name."""

from __future__ import annotations

import typer

from serve_app.cli.calibrate import calibrate
from serve_app.cli.deploy import deploy
from serve_app.cli.etl import etl
from serve_app.cli.evaluate import evaluate
from serve_app.cli.export import export
from serve_app.cli.keys import keys
from serve_app.cli.predict import predict
from serve_app.cli.publish import publish
from serve_app.cli.quantize import quantize
from serve_app.cli.relabel import relabel
from serve_app.cli.run import run
from serve_app.cli.train import train

app = typer.Typer(
    name="serve-app",
    help="Classify photos: serve a model, run batch jobs, train your own classes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (run, deploy, predict, train, evaluate, calibrate, quantize, publish, export, etl, relabel):
    app.command()(command)
app.add_typer(keys)


def main() -> None:
    """Run the command that the arguments name."""
    app()
