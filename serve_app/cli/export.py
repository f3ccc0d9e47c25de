"""`serve-app export`: a taught head and its backbone to one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from serve_app.cli.arguments import exit_on


def export(
    head: Annotated[Path, Argument(metavar="HEAD", exists=True, help="Folder of a version of a head.")],
    out: Annotated[Path, Argument(metavar="OUT", help="File to write.")],
    name: Annotated[str, Option(help="Name of the model.")],
    weights: Annotated[str, Option(help="demo, imagenet, a .safetensors file, or JSON as in `args`.")] = "demo",
    format: Annotated[
        Literal["safetensors", "onnx"], Option(help="A zip of weights and card, or an ONNX graph.")
    ] = "safetensors",
) -> None:
    """Write a taught head and its backbone as one model, checked against the service's own scores."""
    with exit_on():
        from serve_app.config import WeightsConfig
        from serve_app.heads.versions import read_head
        from serve_app.inference.card import load_card
        from serve_app.inference.export_head import HeadLayer, export_onnx, export_weights
        from serve_app.inference.weights import spec_of
        from serve_app.validation import parse

        spec = parse(WeightsConfig, json.loads(weights)) if weights.startswith("{") else spec_of(weights)
        taught = read_head(head, load_card(spec).ref)
        layer = HeadLayer(name, head.name, taught.labels, taught.weight, taught.bias)
        (export_onnx if format == "onnx" else export_weights)(layer, spec, out)
    typer.echo(str(out))
