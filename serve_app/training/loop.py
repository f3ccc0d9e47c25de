"""The training loop: seeded, resumable, for one process or a group of workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from serve_app.errors import DatasetError
from serve_app.training.augment import augment
from serve_app.training.data import ImageDataset
from serve_app.training.recipe import Recipe
from serve_app.training.split import Split
from serve_app.training.trainer import CPU, Trainer
from serve_app.training.worker_group import WorkerGroup

CHECKPOINT_EVERY_S = 60


@dataclass(frozen=True)
class TrainingRun:
    """What to train, and how."""

    dataset: ImageDataset
    split: Split
    recipe: Recipe
    checkpoint: Path  # an interrupted run resumes from it
    init: Mapping[str, Tensor] | None = None  # state dict to start from; None starts from scratch


def train_loop(
    run: TrainingRun,
    device: torch.device = CPU,
    group: WorkerGroup | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Trainer:
    """Train to the end of the schedule, or until the validation loss stops improving; resume from a checkpoint.

    The order of the images and every crop derive from (seed, epoch, step), so a resumed run trains on the same
    crops as an uninterrupted one. Every worker of ``group`` calls this function. ``on_epoch`` gets each epoch's row of
    history.

    Raises:
        DatasetError: There are too few images for one batch.
        TrainingError: The checkpoint belongs to another recipe.
    """
    group, dataset, recipe, training = group or WorkerGroup(), run.dataset, run.recipe, run.split.training
    per_epoch = len(training) // recipe.batch
    if per_epoch == 0:
        lack = f"{len(training)} training images do not fill one batch of {recipe.batch}"
        raise DatasetError(f"{lack}: add images or use a smaller --batch")
    trainer = Trainer(dataset.labels, recipe, per_epoch, device, group, class_weights(dataset))
    if run.init is not None:
        trainer.start_from(run.init)
    if run.checkpoint.exists():
        try:
            trainer.resume(run.checkpoint)
            tqdm.write(f"resumed at step {trainer.step_count} of at most {recipe.epochs * per_epoch}")
        except SafetensorError as error:
            tqdm.write(f"{run.checkpoint} cannot be read ({error}): training starts from the beginning")
    seconds_before, started = trainer.seconds, time.monotonic()
    saved = started

    def save() -> None:
        nonlocal saved
        trainer.seconds = seconds_before + time.monotonic() - started
        if group.rank == 0:
            trainer.save(run.checkpoint)
        saved = time.monotonic()

    stopped = bool(trainer.history) and trainer.stops()
    for epoch in range(trainer.step_count // per_epoch, 0 if stopped else recipe.epochs):
        shuffle = torch.Generator().manual_seed(recipe.seed + 1 + epoch)
        order = training[torch.randperm(len(training), generator=shuffle)]
        px, running_loss = recipe.crop_px(epoch), 0.0
        first = trainer.step_count - epoch * per_epoch
        title = f"epoch {epoch + 1}/{recipe.epochs} at {px} px"
        with tqdm(total=per_epoch, initial=first, desc=title, disable=group.rank > 0) as bar:
            for i in range(first, per_epoch):
                rows = order[i * recipe.batch : (i + 1) * recipe.batch][group.rank :: group.size]
                seed = (recipe.seed * 1_000_003 + trainer.step_count) * group.size + group.rank
                generator = torch.Generator(device).manual_seed(seed)
                crops = augment(dataset.pixels[rows].to(device), px, recipe.augmentation, generator)
                loss = trainer.step(crops, dataset.targets[rows].to(device))
                running_loss = loss if i == first else 0.98 * running_loss + 0.02 * loss
                bar.update()
                if time.monotonic() - saved >= CHECKPOINT_EVERY_S:
                    save()
                    bar.set_postfix(loss=f"{running_loss:.3f}")
        row: dict[str, Any] = {"epoch": epoch + 1, "loss": round(running_loss, 4)}
        if len(run.split.validation):
            loss, accuracy = trainer.validate(dataset, run.split.validation, recipe.serve_px)
            row |= {"validation_loss": round(loss, 4), "validation_top1": round(accuracy, 4)}
        trainer.end_epoch(row)
        save()
        on_epoch(row)
        if group.rank == 0:
            shown = " · ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items())
            tqdm.write(f"{shown} · {trainer.seconds / 60:.1f} min")
        if trainer.stops():
            tqdm.write(f"no better validation loss for {recipe.patience} epochs: stopped, best epoch restored")
            break
    return trainer


def class_weights(dataset: ImageDataset) -> Tensor | None:
    """Return loss weights for uneven classes: the square root of mean class size over class size; None if even."""
    counts = torch.bincount(dataset.targets, minlength=len(dataset.labels))
    weights = (len(dataset.targets) / (len(dataset.labels) * counts.clamp(1))).sqrt()
    return None if bool((weights == 1).all()) else weights
