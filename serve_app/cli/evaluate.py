"""`serve-app evaluate`: weights and labeled images to metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.arguments import one_line_errors


def evaluate(
    weights: Annotated[str, typer.Argument(metavar="WEIGHTS", help="imagenet, demo or a .safetensors file.")],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            exists=True,
            help="Folder with a sub-folder of images per class, or a CSV with the columns path and label.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for all metrics (evaluation.json) and plots.")] = None,
    record: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write the metrics into the weights' card under this name.")
    ] = None,
) -> None:
    """Measure weights on labeled images, as the service would classify them; print the metrics as JSON."""
    if record and not weights.endswith(".safetensors"):
        raise typer.BadParameter("--record needs a .safetensors file as WEIGHTS")
    with one_line_errors():
        from serve_app.inference.weights import spec_of
        from serve_app.training import evaluate as evaluation

        spec = spec_of(weights)
        metrics, _, card = evaluation.evaluate(spec, data)
        if out:
            evaluation.write_evaluation(metrics, card, out)
        if record:
            evaluation.record_metrics(spec, card, record, metrics)
    typer.echo(json.dumps(evaluation.short_metrics(metrics), indent=2))
