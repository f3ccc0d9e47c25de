"""`serve-app evaluate`: weights and labeled images to metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from serve_app.cli.arguments import LabeledImages, Weights, exit_on


def evaluate(
    weights: Weights,
    data: LabeledImages,
    out: Annotated[Path | None, Option(help="Folder for all metrics (evaluation.json) and plots.")] = None,
    record: Annotated[str | None, Option(metavar="NAME", help="Write the metrics into the card, under NAME.")] = None,
) -> None:
    """Measure weights on labeled images, as the service would classify them; print the metrics as JSON."""
    if record and not weights.endswith(".safetensors"):
        raise typer.BadParameter("--record needs a .safetensors file as WEIGHTS")
    with exit_on():
        from serve_app.inference.weights import spec_of
        from serve_app.training import evaluate as evaluation

        spec = spec_of(weights)
        metrics, _, card = evaluation.evaluate(spec, data)
        if out:
            evaluation.write_evaluation(metrics, card, out)
        if record:
            evaluation.record_metrics(spec, card, record, metrics)
    typer.echo(json.dumps(evaluation.short_metrics(metrics), indent=2))
