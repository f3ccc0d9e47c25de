"""Labeled images -> published weights that know them: trained, calibrated, measured.

``python -m serve_app.training.fit DATA OUT`` reads ``DATA/<class>/<image>`` (or ``DATA/train``, ``DATA/val`` and
``DATA/test`` with such folders in them, or a CSV ``path,label``) and leaves ``model.safetensors``, its card
``model.json`` and ``curve.png`` in OUT. Run the same command again after a stop and it goes on from the last
checkpoint.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torchvision.models import ResNet

from serve_app.config import WeightsConfig
from serve_app.errors import ServiceError, WeightsError
from serve_app.inference.weights import load_model, publish, republish, spec_of
from serve_app.model_card import ImageTransform, ModelCard
from serve_app.training.augment import Augmentation
from serve_app.training.calibrate import PRECISION, calibrate, share
from serve_app.training.data import LabeledImages, fingerprint_of, load_images
from serve_app.training.evaluate import evaluate, short
from serve_app.training.loop import Job, train
from serve_app.training.pictures import draw_curve
from serve_app.training.recipe import Recipe, defaults
from serve_app.training.report import Listed, Split, describe, divide, find, leaks
from serve_app.training.trainer import CPU, MEAN, STD, Trainer

Start = tuple[ResNet, ModelCard] | None


def starting_weights(text: str) -> Start:
    """The weights to start from; ``auto`` is ImageNet's where they can be had, else the demo's.

    Raises:
        WeightsError, OSError: They cannot be had.
    """
    if text == "scratch":
        return None
    if text == "auto":
        try:
            return load_model(WeightsConfig(source="imagenet"))
        except WeightsError as error:
            print(f"starting from the demo model, as ImageNet's cannot be had ({str(error)[:120]}…)")
            text = "demo"
    return load_model(spec_of(text))


def fit(asked: argparse.Namespace) -> WeightsConfig:
    """Do what a command line asks for.

    Returns:
        The weights published.

    Raises:
        ServiceError, OSError, ValueError: It cannot be done; the message says what to do.
    """
    listed = find(asked.data, asked.feedback)
    start = starting_weights(asked.weights)
    chosen = defaults(len(listed.files), start[1] if start else None)
    for name in vars(chosen).keys() & vars(asked).keys():
        if getattr(asked, name) is None:
            setattr(asked, name, getattr(chosen, name))
    images = load_images(listed.files, listed.labels, asked.store_px, asked.skip_broken)
    given = None if listed.training is None else len({*listed.files[: listed.training]} & {*images.files})
    split = divide(images, given, asked.validation, asked.seed)
    print("\n".join([*describe(images, split), *(leaks(listed.test, images) if listed.test else [])]))
    asked.out.mkdir(parents=True, exist_ok=True)
    checkpoint = asked.out / "checkpoint.safetensors"
    if asked.fresh:
        checkpoint.unlink(missing_ok=True)
    trainer = run(job_of(asked, images, split, start, checkpoint), asked.workers)
    if trainer.history:
        draw_curve(trainer.history, asked.out / "curve.png")
    return finish(asked, images, split, trainer, start, listed)


def job_of(asked: argparse.Namespace, images: LabeledImages, split: Split, start: Start, checkpoint: Path) -> Job:
    """What to train, from a command line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = images.labels
    recipe = Recipe(
        schedule=asked.schedule,
        store_px=asked.store_px,
        batch=min(asked.batch, max(2, len(split.training))),
        peak_lr=asked.peak_lr,
        validation=asked.validation,
        seed=asked.seed,
        bf16=asked.bf16 or (device.type == "cuda" and torch.cuda.is_bf16_supported()),
        init_sha256=start[1].sha256 if start else None,
        head_epochs=asked.head_epochs,
        patience=asked.patience if len(split.validation) else 0,
        data_sha256=fingerprint_of((d, names[t]) for d, t in zip(images.digests, images.targets.tolist(), strict=True)),
        workers=asked.workers,
    )
    init = start[0].state_dict() if start else None
    return Job(images, split, recipe, Augmentation(area=tuple(asked.area)), asked.serve_px, checkpoint, init)


def run(job: Job, workers: int) -> Trainer:
    """Train, here or with Ray; the result of the latter is read from the checkpoint."""
    if workers > 1:
        from serve_app.training.workers import train_together  # needs ray[train], which one worker does not

        train_together(job, workers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return train(job, device if workers == 1 else CPU)


def finish(
    asked: argparse.Namespace, images: LabeledImages, split: Split, trainer: Trainer, start: Start, listed: Listed
) -> WeightsConfig:
    """Publish weights and card, calibrate on what was held out, measure on it, and on DATA's test images."""
    px, out = asked.serve_px, asked.out
    origin = {"init": start[1].model_dump(include={"version", "sha256", "training"})} if start else {}
    card = publish(
        trainer.result,
        {
            "name": "resnet18",
            "version": asked.version or f"{asked.data.resolve().stem}-{datetime.date.today():%Y%m%d}",
            "labels": images.labels,
            "transform": ImageTransform(resize_px=px, crop_px=px, mean=MEAN, std=STD),
            "training": {
                "data": f"{asked.data.name}: {len(images.paths)} images in {len(images.labels)} classes",
                "command": f"python -m serve_app.training.fit {shlex.join(sys.argv[1:])}",
                "seed": asked.seed,
                "minutes": round(trainer.seconds / 60, 1),
                "recipe": asdict(trainer.recipe),
                "augmentation": asdict(Augmentation(area=tuple(asked.area))),
                "torch": torch.__version__,
                **origin,
            },
            "notes": asked.notes,
        },
        out,
    )
    spec = WeightsConfig(source=str(out / "model.safetensors"), sha256=card.sha256)
    measured: dict[str, Any] = {}
    if held := [images.files[row] for row in split.validation.tolist()]:
        spec, _ = calibrate(spec, held, asked.precision, out)
        measured["held-out"] = short(evaluate(spec, held)[0])
    if listed.test:
        measured["test"] = short(evaluate(spec, listed.test)[0])
    return republish(spec, load_model(spec)[1].model_copy(update={"metrics": measured}), out)


def parse_schedule(text: str) -> tuple[tuple[int, int], ...]:
    """Read ``48:6,64:14`` as crops of 48 px for 6 epochs, then of 64 px for 14."""
    return tuple((int(px), int(epochs)) for px, _, epochs in (part.partition(":") for part in text.split(",")))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; what is None is chosen by the number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", metavar="DATA", type=Path, help="folder or CSV of labeled images")
    add("out", metavar="OUT", type=Path, help="folder for checkpoint, weights, card and curve")
    add("--weights", "--init", default="auto", help="start from imagenet, demo, a .safetensors file or scratch")
    add("--workers", type=int, default=1, help="processes that share the work, by Ray Train")
    add("--precision", type=share, default=PRECISION, help="share of sure answers that are to be right")
    add("--validation", type=share, help="share of the images to hold out, where DATA has no val folder")
    add("--feedback", metavar="FOLDER", type=Path, help="train on what people said of answers, too: docs/feedback.md")
    add("--skip-broken", action="store_true", help="leave broken images out instead of stopping")
    add("--fresh", action="store_true", help="forget the checkpoint of an earlier run")
    add("--schedule", type=parse_schedule, help="crop_px:epochs,…")
    add("--head-epochs", type=int, help="of those, how many at first train the last layer alone")
    add("--patience", type=int, help="epochs without progress until it stops; 0 never")
    add("--store-px", type=int, help="side at which images are kept in memory")
    add("--serve-px", type=int, help="side at which the weights want their images")
    add("--crop-area", dest="area", type=float, nargs=2, help="smallest and largest")
    add("--batch", type=int, help="images per step")
    add("--peak-lr", type=float, help="highest learning rate")
    add("--seed", type=int, default=0)
    add("--bf16", action="store_true", help="faster on processors with AVX512-BF16 or AMX; a GPU takes it anyway")
    add("--version", help="names these weights in answers and metrics; by default DATA's name and the date")
    add("--notes", default="", help="shown to users beside the model's name")
    return parser.parse_args(arguments)


def main() -> None:
    """Command line."""
    asked = parse()
    try:
        made = fit(asked)
        card = load_model(made)[1]
    except (ServiceError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for name, found in card.metrics.items():
        sure = found["abstain"]
        print(
            f"{name}: top-1 {found['top1']}, calibration error {found['ece']}, not sure {sure['share']}, "
            f"right where sure {sure['precision']}"
        )
    print(f"serve it with: weights: {{source: {Path(made.source).resolve()}, sha256: {made.sha256}}}")


if __name__ == "__main__":
    main()
