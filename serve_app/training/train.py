"""Train weights for your own classes, calibrate them and measure them: what `serve-app train` runs."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from serve_app.config import WeightsConfig
from serve_app.inference.torch_model import publish
from serve_app.inference.weights import republish
from serve_app.model_card import ImageTransform, ModelCard
from serve_app.training.augment import Augmentation
from serve_app.training.calibrate import PRECISION, calibrate
from serve_app.training.data import load_images
from serve_app.training.evaluate import evaluate, short_metrics
from serve_app.training.initial import InitialWeights, load_initial_weights
from serve_app.training.loop import TrainingRun, train_loop
from serve_app.training.plots import plot_curve
from serve_app.training.recipe import Hyperparameters, Recipe, default_hyperparameters
from serve_app.training.split import describe_dataset, list_dataset, split_images, warn_of_leaks
from serve_app.training.trainer import CPU, MEAN, STD, Trainer


@dataclass(frozen=True)
class TrainOptions:
    """The options of `serve-app train`; its help describes each of them."""

    data: Path
    out: Path
    weights: str = "auto"
    workers: int = 1
    precision: float = PRECISION
    feedback: Path | None = None
    skip_broken: bool = False
    fresh: bool = False
    seed: int = 0
    bf16: bool = False
    version: str | None = None
    notes: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)  # by field of Hyperparameters; others get their default
    command: str = ""  # the command line, for the card


def train(options: TrainOptions) -> WeightsConfig:
    """Train, calibrate and measure; resume if OUT has a checkpoint.

    Returns:
        The weights written to ``OUT/model.safetensors``, with their card beside them.

    Raises:
        ServiceError: DATA, weights or checkpoint cannot be used; the message says why.
        OSError: A file cannot be read or written.
    """
    listed = list_dataset(options.data, options.feedback)
    init = load_initial_weights(options.weights)
    defaults = default_hyperparameters(len(listed.files), init.crop_px if init else None)
    chosen = replace(defaults, **options.overrides)
    dataset = load_images(listed.files, listed.labels, chosen.store_px, options.skip_broken)
    # --skip-broken may have removed training files.
    training = None if listed.training is None else len({*listed.files[: listed.training]} & {*dataset.files})
    split = split_images(dataset, training, chosen.validation, options.seed)
    warnings = warn_of_leaks(listed.test, dataset) if listed.test else []
    tqdm.write("\n".join([*describe_dataset(dataset, split), *warnings]))

    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "checkpoint.safetensors"
    if options.fresh:
        checkpoint.unlink(missing_ok=True)
    if not len(split.validation):
        chosen = replace(chosen, patience=0)
    chosen = replace(chosen, batch=min(chosen.batch, max(2, len(split.training))))
    recipe = _recipe(options, chosen, init, dataset.fingerprint)
    run = TrainingRun(dataset, split, recipe, checkpoint, init.model.state_dict() if init else None)
    if options.workers == 1:
        trainer = train_loop(run, _device())
    else:
        from serve_app.training.distributed import train_distributed  # needs ray[train]; one worker does not

        train_distributed(run, options.workers)
        trainer = train_loop(run, CPU)  # reads the result from the checkpoint
    if trainer.history:
        plot_curve(trainer.history, options.out / "curve.png")

    spec, card = _publish(options, run, trainer, init)
    metrics: dict[str, Any] = {}
    if held_out := [dataset.files[row] for row in split.validation.tolist()]:
        spec, calibration = calibrate(spec, held_out, options.precision, options.out)
        card = card.model_copy(update={"calibration": calibration})
        metrics["held-out"] = short_metrics(evaluate(spec, held_out)[0])
    if listed.test:
        metrics["test"] = short_metrics(evaluate(spec, listed.test)[0])
    return republish(spec, card.model_copy(update={"metrics": metrics}), options.out)


def _recipe(options: TrainOptions, chosen: Hyperparameters, init: InitialWeights | None, data_sha256: str) -> Recipe:
    names = {field.name for field in fields(Recipe)}
    return Recipe(
        **{name: value for name, value in asdict(chosen).items() if name in names},
        augmentation=Augmentation(area=chosen.crop_area),
        seed=options.seed,
        bf16=options.bf16 or (_device().type == "cuda" and torch.cuda.is_bf16_supported()),
        init_sha256=init.sha256 if init else None,
        data_sha256=data_sha256,
        workers=options.workers,
    )


def _publish(
    options: TrainOptions, run: TrainingRun, trainer: Trainer, init: InitialWeights | None
) -> tuple[WeightsConfig, ModelCard]:
    """Write the trained weights and a card that says how they were made."""
    dataset, px = run.dataset, run.recipe.serve_px
    origin = {"init": init.origin} if init else {}
    card = publish(
        trainer.result,
        {
            "name": "resnet18",
            "version": options.version or f"{options.data.resolve().stem}-{datetime.date.today():%Y%m%d}",
            "labels": dataset.labels,
            "transform": ImageTransform(resize_px=px, crop_px=px, mean=MEAN, std=STD),
            "training": {
                "date": f"{datetime.date.today()}",
                "data": f"{options.data.name}: {len(dataset.paths)} images in {len(dataset.labels)} classes",
                "command": options.command,
                "seed": options.seed,
                "minutes": round(trainer.seconds / 60, 1),
                "recipe": asdict(trainer.recipe),
                "torch": torch.__version__,
                **origin,
            },
            "notes": options.notes,
        },
        options.out,
    )
    return WeightsConfig(source=str(options.out / "model.safetensors"), sha256=card.sha256), card


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
