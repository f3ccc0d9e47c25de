"""`serve-app train`: labeled images to weights."""

from __future__ import annotations

import inspect
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from serve_app.cli.arguments import Precision, exit_on, fraction
from serve_app.errors import DatasetError

if TYPE_CHECKING:
    from serve_app.config import WeightsConfig

DATA_HELP = """Folder with a sub-folder of images per class; or with train/, val/ and test/, which have such
sub-folders; or a CSV with the columns path and label."""
WEIGHTS_HELP = """Weights to start from: imagenet, demo, a .safetensors file, or scratch for random ones. auto is
imagenet if it can be downloaded, else demo. A file without a card (.json) is a backbone: torchvision's names, no fc."""
RECIPE_HELP = """Recipe file (YAML): trains a head on cached features of the initial weights, with photos of
several sources that a CSV maps to classes. DATA is the folder of these sources."""


def parse_schedule(text: str) -> tuple[tuple[int, int], ...]:
    """Parse ``48:6,64:14``: crops of 48 px for 6 epochs, then crops of 64 px for 14."""
    try:
        return tuple((int(px), int(epochs)) for px, epochs in (part.split(":") for part in text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not like 48:6,64:14 (crop side in px : epochs)") from None


Schedule = Annotated[Any, Option(parser=parse_schedule, metavar="PX:EPOCHS,…", help="Side of the crops, and epochs.")]


def train(
    data: Annotated[Path, Argument(exists=True, metavar="DATA", help=DATA_HELP)],
    out: Annotated[Path, Argument(metavar="OUT", help="Folder for checkpoint, weights, card and curve.")],
    weights: Annotated[str, Option("--weights", "--init", help=WEIGHTS_HELP)] = "auto",
    recipe: Annotated[Path | None, Option(exists=True, dir_okay=False, help=RECIPE_HELP)] = None,
    workers: Annotated[int, Option(min=1, help="Processes that share each batch, by Ray Train.")] = 1,
    precision: Precision = 0.95,
    validation: Annotated[float | None, Option(parser=fraction, help="Fraction to hold out, without val/.")] = None,
    feedback: Annotated[Path | None, Option(help="Feedback folder; its labeled images train too.")] = None,
    skip_broken: Annotated[bool, Option("--skip-broken", help="Leave broken images out instead of stopping.")] = False,
    fresh: Annotated[bool, Option("--fresh", help="Delete the checkpoint of an earlier run.")] = False,
    schedule: Schedule = None,
    head_epochs: Annotated[int | None, Option(min=0, help="First epochs, for the last layer only.")] = None,
    patience: Annotated[int | None, Option(min=0, help="Epochs without progress before it stops; 0: never.")] = None,
    store_px: Annotated[int | None, Option(min=1, help="Side of the images in memory, in px.")] = None,
    serve_px: Annotated[int | None, Option(min=1, help="Side of the images that the model will get, in px.")] = None,
    crop_area: Annotated[tuple[float, float] | None, Option(metavar="MIN MAX", help="Area of training crops.")] = None,
    batch: Annotated[int | None, Option(min=1, help="Images per step, of all workers together.")] = None,
    peak_lr: Annotated[float | None, Option(min=0, help="Highest learning rate.")] = None,
    seed: Annotated[int, Option(help="Seed of everything random.")] = 0,
    bf16: Annotated[bool, Option("--bf16", help="Use bfloat16: fast with AVX512-BF16, AMX; GPUs always do.")] = False,
    version: Annotated[str | None, Option(help="Version in answers (default: DATA's name and the date).")] = None,
    notes: Annotated[str, Option(help="Note that users see beside the model's name.")] = "",
) -> None:
    """Train a ResNet-18 on your own classes; calibrate and measure it on held-out images.

    Writes model.safetensors, its card model.json and curve.png to OUT. After an interruption, the same command
    resumes from the last checkpoint. Options without a default depend on the number of images.
    """
    arguments = locals()  # by name
    with exit_on():
        from serve_app.inference.card import load_card

        command = shlex.join(["serve-app", *sys.argv[1:]])
        spec = _train_by_recipe(arguments, command) if recipe else _train_by_options(arguments, command)
        for name, metrics in load_card(spec).metrics.items():
            abstain = metrics["abstain"]
            typer.echo(
                f"{name}: top-1 {metrics['top1']}, top-5 {metrics['top5']}, calibration error {metrics['ece']}, "
                f"not sure {abstain['share']}, accuracy of the rest {abstain['precision']}"
            )
    typer.echo(f"serve it with: weights: {{source: {Path(spec.source).resolve()}, sha256: {spec.sha256}}}")


def _train_by_options(arguments: dict[str, Any], command: str) -> WeightsConfig:
    from serve_app.training.recipe import Hyperparameters
    from serve_app.training.train import TrainOptions
    from serve_app.training.train import train as train_weights

    hyperparameters = {field.name: arguments.pop(field.name) for field in fields(Hyperparameters)}
    overrides = {name: value for name, value in hyperparameters.items() if value is not None}
    options = {field.name: arguments[field.name] for field in fields(TrainOptions) if field.name in arguments}
    return train_weights(TrainOptions(**options, overrides=overrides, command=command))


def _train_by_recipe(arguments: dict[str, Any], command: str) -> WeightsConfig:
    from serve_app.training.transfer import TransferOptions, train_by_recipe

    options = {field.name: arguments.pop(field.name) for field in fields(TransferOptions) if field.name in arguments}
    defaults = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    if given := [name for name, value in arguments.items() if value != defaults[name]]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise DatasetError(f"{names}: has no effect with --recipe; the recipe file decides it")
    return train_by_recipe(TransferOptions(**options, command=command))
