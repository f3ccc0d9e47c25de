"""The training loop: seeded, resumable, for one process or a team of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from serve_app.errors import DatasetError
from serve_app.training.augment import Augmentation, augment
from serve_app.training.data import LabeledImages
from serve_app.training.recipe import Recipe
from serve_app.training.report import Split
from serve_app.training.team import Team
from serve_app.training.trainer import CPU, Trainer

CHECKPOINT_EVERY_S = 60


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        images: All of them.
        split: Which train and which watch.
        recipe: How.
        augmentation: How far training crops stray.
        serve_px: Side at which the weights want their images.
        checkpoint: File that a stopped run goes on from.
        init: Weights to start from; none starts from scratch.
    """

    images: LabeledImages
    split: Split
    recipe: Recipe
    augmentation: Augmentation
    serve_px: int
    checkpoint: Path
    init: Mapping[str, Tensor] | None = None


def train(
    job: Job,
    device: torch.device = CPU,
    team: Team | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Trainer:
    """Train to the end of the schedule, or until it gets no better; from the checkpoint if it exists.

    The order of the images and every crop derive from (seed, epoch, step), so a resumed
    run sees what an uninterrupted one would have seen.

    Args:
        job: What to train.
        device: Where.
        team: The workers that share each batch; each calls this.
        on_epoch: Gets each epoch's row of history.

    Raises:
        DatasetError: Too few images for one batch.
        ValueError: The checkpoint belongs to another recipe.
    """
    team, images, recipe, training = team or Team(), job.images, job.recipe, job.split.training
    per_epoch = len(training) // recipe.batch
    if per_epoch == 0:
        raise DatasetError(
            f"{len(training)} training images do not fill one batch of {recipe.batch}: add images or use --batch"
        )
    trainer = Trainer(images.labels, recipe, per_epoch, device, team, class_weights(images))
    if job.init is not None:
        trainer.start_from(job.init)
    if job.checkpoint.exists():
        trainer.resume(job.checkpoint)
        tqdm.write(f"resumed at step {trainer.step_count} of at most {recipe.epochs * per_epoch}")
    saving = _Saving(trainer, job.checkpoint if team.rank == 0 else None)
    stopped = bool(trainer.history) and trainer.stops()
    for epoch in range(trainer.step_count // per_epoch, 0 if stopped else recipe.epochs):
        order = training[
            torch.randperm(len(training), generator=torch.Generator().manual_seed(recipe.seed + 1 + epoch))
        ]
        px, running = recipe.crop_px(epoch), 0.0
        first = trainer.step_count - epoch * per_epoch
        shown = f"epoch {epoch + 1}/{recipe.epochs} at {px} px"
        with tqdm(total=per_epoch, initial=first, desc=shown, disable=team.rank > 0) as bar:
            for i in range(first, per_epoch):
                rows = order[i * recipe.batch : (i + 1) * recipe.batch][team.rank :: team.size]
                seed = (recipe.seed * 1_000_003 + trainer.step_count) * team.size + team.rank
                generator = torch.Generator(device).manual_seed(seed)
                crops = augment(images.pixels[rows].to(device), px, job.augmentation, generator)
                loss = trainer.step(crops, images.targets[rows].to(device))
                running = loss if i == first else 0.98 * running + 0.02 * loss
                bar.update()
                if saving.due():
                    bar.set_postfix(loss=f"{running:.3f}")
        row: dict[str, Any] = {"epoch": epoch + 1, "loss": round(running, 4)}
        if len(job.split.validation):
            loss, accuracy = trainer.validate(images, job.split.validation, job.serve_px)
            row |= {"validation_loss": round(loss, 4), "validation_top1": round(accuracy, 4)}
        trainer.end_epoch(row)
        saving.now()
        on_epoch(row)
        if team.rank == 0:
            told = " · ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items())
            tqdm.write(f"{told} · {trainer.seconds / 60:.1f} min")
        if trainer.stops():
            tqdm.write(f"no better for {recipe.patience} epochs: stopped, back to the best")
            break
    return trainer


def class_weights(images: LabeledImages) -> Tensor | None:
    """What makes rare classes count more: the square root of how much rarer than the mean; None if all are even."""
    counts = torch.bincount(images.targets, minlength=len(images.labels))
    weights = (len(images.targets) / (len(images.labels) * counts.clamp(1))).sqrt()
    return None if bool((weights == 1).all()) else weights


class _Saving:
    """Checkpoints, by the clock and when asked; keeps the time that was trained."""

    def __init__(self, trainer: Trainer, path: Path | None) -> None:
        self._trainer, self._path = trainer, path
        self._before, self._started = trainer.seconds, time.monotonic()
        self._saved = self._started

    def due(self) -> bool:
        """Save if it is time to; whether it was."""
        if time.monotonic() - self._saved < CHECKPOINT_EVERY_S:
            return False
        self.now()
        return True

    def now(self) -> None:
        self._trainer.seconds = self._before + time.monotonic() - self._started
        if self._path:
            self._trainer.save(self._path)
        self._saved = time.monotonic()
