"""Train ResNet-18 on a folder of labelled images; survives interruption; ends in weights + card.

``python -m serve_app.training.fit DATA OUT`` reads ``DATA/<class>/<image>`` and leaves
``model.safetensors`` and ``model.json`` in OUT. Run the same command again after a stop and
it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from serve_app.errors import DatasetError, WeightsError
from serve_app.schemas import ImageTransform
from serve_app.training.augment import Augmentation, augment
from serve_app.training.data import LabelledImages, load_image_folder
from serve_app.training.trainer import MEAN, STD, Recipe, Trainer
from serve_app.weights import load_model, publish, spec_of

CHECKPOINT_EVERY_S = 120


def fit(
    images: LabelledImages,
    recipe: Recipe,
    augmentation: Augmentation,
    serve_px: int,
    checkpoint: Path,
    init: Mapping[str, Tensor] | None = None,
) -> Trainer:
    """Train to the end of the schedule, from ``checkpoint`` if it exists.

    The order of the images and every crop derive from (seed, epoch, step), so a resumed
    run sees what an uninterrupted one would have seen.

    Raises:
        DatasetError: Too few images for one batch.
        ValueError: The checkpoint belongs to another recipe.
    """
    shuffled = torch.randperm(len(images.paths), generator=torch.Generator().manual_seed(recipe.seed))
    validation = shuffled[: int(len(shuffled) * recipe.validation)]
    training = shuffled[len(validation) :]
    per_epoch = len(training) // recipe.batch
    if per_epoch == 0:
        raise DatasetError(
            f"{len(training)} training images do not fill one batch of {recipe.batch}: add images or use --batch"
        )
    trainer = Trainer(images.labels, recipe, per_epoch)
    if init is not None:
        trainer.start_from(init)
    if checkpoint.exists():
        trainer.resume(checkpoint)
        tqdm.write(f"resumed at step {trainer.step_count} of {recipe.epochs * per_epoch}")
    started = saved = time.monotonic()
    before = trainer.seconds
    for epoch in range(trainer.step_count // per_epoch, recipe.epochs):
        order = training[
            torch.randperm(len(training), generator=torch.Generator().manual_seed(recipe.seed + 1 + epoch))
        ]
        px, running = recipe.crop_px(epoch), 0.0
        first = trainer.step_count - epoch * per_epoch
        with tqdm(total=per_epoch, initial=first, desc=f"epoch {epoch + 1}/{recipe.epochs} at {px} px") as bar:
            for i in range(first, per_epoch):
                rows = order[i * recipe.batch : (i + 1) * recipe.batch]
                generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + trainer.step_count)
                crops = augment(images.pixels[rows], px, augmentation, generator)
                loss = trainer.step(crops, images.targets[rows])
                running = loss if i == first else 0.98 * running + 0.02 * loss
                bar.update()
                trainer.seconds = before + time.monotonic() - started
                if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                    trainer.save(checkpoint)
                    saved = time.monotonic()
                    bar.set_postfix(loss=f"{running:.3f}")
        trainer.save(checkpoint)
        saved = time.monotonic()
        shown = f" · validation {trainer.accuracy(images, validation, serve_px):.1%}" if len(validation) else ""
        tqdm.write(f"epoch {epoch + 1}: loss {running:.3f}{shown} · {trainer.seconds / 60:.1f} min")
    return trainer


def parse_schedule(text: str) -> tuple[tuple[int, int], ...]:
    """Read ``48:6,64:14`` as crops of 48 px for 6 epochs, then of 64 px for 14."""
    return tuple((int(px), int(epochs)) for px, _, epochs in (part.partition(":") for part in text.split(",")))


def describe(images: LabelledImages, trainer: Trainer, augmentation: Augmentation, data: Path) -> dict[str, Any]:
    """What the model card says about how the weights came to be."""
    return {
        "data": f"{data.name}: {len(images.paths)} images in {len(images.labels)} classes",
        "command": f"python -m serve_app.training.fit {shlex.join(sys.argv[1:])}",
        "seed": trainer.recipe.seed,
        "minutes": round(trainer.seconds / 60, 1),
        "recipe": asdict(trainer.recipe),
        "augmentation": asdict(augmentation),
        "torch": torch.__version__,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one sub-folder of images per class")
    parser.add_argument("out", type=Path, help="folder for checkpoint, weights and card")
    parser.add_argument("--schedule", type=parse_schedule, default="96:10,128:10", help="crop_px:epochs,…")
    parser.add_argument("--store-px", type=int, default=144, help="side at which images are kept in memory")
    parser.add_argument("--serve-px", type=int, default=160, help="side at which the weights want their images")
    parser.add_argument("--crop-area", type=float, nargs=2, default=Augmentation.area, help="smallest and largest")
    parser.add_argument("--init", help="start from these weights: imagenet, demo or a .safetensors file")
    parser.add_argument("--batch", type=int, default=Recipe.batch, help="images per step")
    parser.add_argument("--peak-lr", type=float, default=Recipe.peak_lr, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="faster on processors with AVX512-BF16 or AMX")
    parser.add_argument("--version", default="1", help="names these weights in answers and metrics")
    parser.add_argument("--notes", default="", help="shown to users beside the model's name")
    options = parser.parse_args()
    augmentation = Augmentation(area=tuple(options.crop_area))
    try:
        model, origin = load_model(spec_of(options.init)) if options.init else (None, None)
        recipe = Recipe(
            options.schedule,
            options.store_px,
            batch=options.batch,
            peak_lr=options.peak_lr,
            seed=options.seed,
            bf16=options.bf16,
            init_sha256=origin.sha256 if origin else None,
        )
        images = load_image_folder(options.data, recipe.store_px)
        options.out.mkdir(parents=True, exist_ok=True)
        checkpoint = options.out / "checkpoint.safetensors"
        trainer = fit(images, recipe, augmentation, options.serve_px, checkpoint, model.state_dict() if model else None)
    except (DatasetError, WeightsError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    transform = ImageTransform(resize_px=options.serve_px, crop_px=options.serve_px, mean=MEAN, std=STD)
    card = {"name": "resnet18", "version": options.version, "labels": images.labels, "transform": transform}
    training = describe(images, trainer, augmentation, options.data)
    if origin:
        training["init"] = {"version": origin.version, "sha256": origin.sha256, "training": origin.training}
    publish(trainer.average, {**card, "training": training, "notes": options.notes}, options.out)
    print(f"{options.out}/model.safetensors and model.json; next: python -m serve_app.training.evaluate")


if __name__ == "__main__":
    main()
