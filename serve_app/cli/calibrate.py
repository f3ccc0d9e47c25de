"""`serve-app calibrate`: held-out images to temperature and threshold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from serve_app.cli.arguments import LABELED_HELP, OUT_HELP, WEIGHTS_HELP, fraction, one_line_errors


def calibrate(
    weights: Annotated[str, Argument(metavar="WEIGHTS", help=WEIGHTS_HELP)],
    data: Annotated[Path, Argument(metavar="DATA", exists=True, help=f"{LABELED_HELP} Not used in training.")],
    out: Annotated[Path, Argument(metavar="OUT", help=OUT_HELP)],
    precision: Annotated[float, Option(parser=fraction, help="Target accuracy above the threshold.")] = 0.95,
) -> None:
    """Fit a temperature and an abstention threshold on held-out images, and write both into the card."""
    with one_line_errors():
        from serve_app.inference.weights import load_model, spec_of
        from serve_app.training.calibrate import calibrate as fit_calibration
        from serve_app.training.data import list_images

        spec = spec_of(weights)
        files, _ = list_images(data, load_model(spec)[1].labels)
        calibrated, calibration = fit_calibration(spec, files, precision, out)
    typer.echo(json.dumps(calibration.model_dump(), indent=2))
    if calibration.abstain_below is None:
        typer.echo(f"no threshold reaches a precision of {precision} on these images; the default threshold stays")
    typer.echo(f"serve it with: weights: {{source: {Path(calibrated.source).resolve()}, sha256: {calibrated.sha256}}}")
