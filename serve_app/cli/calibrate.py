"""`serve-app calibrate`: held-out images to temperature and threshold."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from serve_app.cli.arguments import LabeledImages, Out, Precision, Weights, exit_on


def calibrate(weights: Weights, data: LabeledImages, out: Out, precision: Precision = 0.95) -> None:
    """Fit a temperature and an abstention threshold on images not used in training; write both into the card."""
    with exit_on():
        from serve_app.inference.card import load_card
        from serve_app.inference.weights import spec_of
        from serve_app.training.calibrate import calibrate as fit_calibration
        from serve_app.training.data import list_images

        spec = spec_of(weights)
        files, _ = list_images(data, load_card(spec).labels)
        calibrated, calibration = fit_calibration(spec, files, precision, out)
    typer.echo(json.dumps(calibration.model_dump(), indent=2))
    if calibration.abstain_below is None:
        typer.echo(f"no threshold reaches a precision of {precision} on these images; the default threshold stays")
    typer.echo(f"serve it with: weights: {{source: {Path(calibrated.source).resolve()}, sha256: {calibrated.sha256}}}")
