"""`serve-app quantize`: images to an int8 calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from serve_app.cli.arguments import Out, Weights, exit_on


def quantize(
    weights: Weights,
    images: Annotated[Path, Argument(metavar="IMAGES", exists=True, help="Folder of images like those to be served.")],
    out: Out,
    count: Annotated[int, Option(min=1, help="Number of images to calibrate on.")] = 256,
    held_out: Annotated[int, Option(min=1, help="Maximum number of other images to measure on.")] = 1000,
    test: Annotated[Path | None, Option(exists=True, help="Folder to measure on; default: rest of IMAGES.")] = None,
    seed: Annotated[int, Option(help="Seed of the random choice of images.")] = 0,
) -> None:
    """Write an int8 calibration into the card, and measure what int8 changes on other images.

    If the sub-folders of the images are named like the model's classes, top-1 accuracy is measured too.
    """
    with exit_on():
        from serve_app.inference.quantize import quantize as calibrate_int8
        from serve_app.inference.weights import spec_of

        quantized, cost = calibrate_int8(spec_of(weights), images, out, count, held_out, test, seed)
    typer.echo(f"{quantized.source}: its card now has the int8 calibration; measured on held-out images:")
    typer.echo(json.dumps(cost.model_dump(exclude_none=True), indent=2))
    typer.echo("serve it with these args:")
    typer.echo(f"  weights: {{source: {Path(quantized.source).resolve()}, sha256: {quantized.sha256}}}")
    typer.echo("  engine: {precision: int8}")
