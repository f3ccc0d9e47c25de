"""Train ResNet-18 on a folder of labelled images; survives interruption; ends in weights + card.

``python -m serve_app.training.fit DATA OUT`` reads ``DATA/<class>/<image>`` and leaves
``model.safetensors`` and ``model.json`` in OUT. Run the same command again after a stop and
it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18
from tqdm import tqdm

from serve_app.errors import DatasetError, WeightsError
from serve_app.schemas import ImageTransform
from serve_app.training.augment import Augmentation, augment
from serve_app.training.data import LabelledImages, load_image_folder
from serve_app.weights import load_model, publish, spec_of

CHECKPOINT_EVERY_S = 120
# ImageNet's statistics: what torchvision's own weights use, and close enough for any photos.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Recipe:
    """What decides the result, apart from the data.

    Attributes:
        schedule: (crop_px, epochs) in order: small crops first are cheaper epochs.
        store_px: Side at which images are kept in memory, in px.
        batch: Images per step.
        peak_lr: Learning rate after warm-up; cosine to zero from there.
        warm_up: Share of all steps that the learning rate rises over.
        momentum: Of SGD (Nesterov).
        weight_decay: On convolution and fc weights; never on norms and biases.
        label_smoothing: Probability spread over the other classes.
        ema: Decay per step of the weights' moving average, which is what is published.
        validation: Share of DATA kept out of training to watch progress.
        seed: Of initial weights, split, order and augmentation.
        bf16: Compute in bfloat16 where the processor is faster at it.
        init_sha256: Of the weights that training starts from; none starts from scratch.
    """

    schedule: tuple[tuple[int, int], ...]
    store_px: int
    batch: int = 128
    peak_lr: float = 0.1
    warm_up: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    ema: float = 0.998
    validation: float = 0.02
    seed: int = 0
    bf16: bool = False
    init_sha256: str | None = None

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return sum(epochs for _, epochs in self.schedule)

    def crop_px(self, epoch: int) -> int:
        """The side of the training crops in ``epoch`` (from 0)."""
        for px, epochs in self.schedule:
            if epoch < epochs:
                return px
            epoch -= epochs
        raise IndexError("epoch is past the schedule")


class Trainer:
    """Model, its moving average and the optimiser, and where in the schedule they stand."""

    def __init__(self, labels: Sequence[str], recipe: Recipe, steps_per_epoch: int) -> None:
        """Build an untrained model for ``labels``."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.steps_per_epoch = recipe, steps_per_epoch
        self.model = resnet18(num_classes=len(labels), zero_init_residual=True)
        self.model.to(memory_format=torch.channels_last)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain}]
        self.optimizer = torch.optim.SGD(
            groups,
            lr=recipe.peak_lr,
            momentum=recipe.momentum,
            nesterov=True,
        )
        self.step_count, self.seconds = 0, 0.0
        self.mean = torch.tensor(MEAN).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(STD).view(1, 3, 1, 1) * 255

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Take another model's weights; its last layer only if it has as many classes."""
        own = self.model.state_dict()
        self.model.load_state_dict({k: state[k] if state[k].shape == v.shape else v for k, v in own.items()})
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}

    def learning_rate(self) -> float:
        """Linear warm-up, then cosine to zero."""
        done = self.step_count / (self.recipe.epochs * self.steps_per_epoch)
        if done < self.recipe.warm_up:
            return self.recipe.peak_lr * (done + 1e-3) / self.recipe.warm_up
        return (
            self.recipe.peak_lr
            * 0.5
            * (1 + math.cos(math.pi * (done - self.recipe.warm_up) / (1 - self.recipe.warm_up)))
        )

    def step(self, crops: Tensor, targets: Tensor) -> float:
        """One optimiser step on float32 crops (N, 3, H, W) in 0-255; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            logits = self.model((crops - self.mean) / self.std)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step_count += 1
        with torch.no_grad():
            # A short average at first, so that the untrained start is forgotten.
            decay = min(self.recipe.ema, self.step_count / (self.step_count + 10))
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)
                else:
                    self.average[name].copy_(value)
        return loss.item()

    @torch.no_grad()
    def accuracy(self, images: LabelledImages, rows: Tensor, px: int) -> float:
        """Top-1 of the averaged weights on some rows, whole images at ``px``."""
        model = resnet18(num_classes=len(images.labels)).eval()
        model.load_state_dict(self.average)
        hits = 0
        for part in rows.split(self.recipe.batch):
            crops = F.interpolate(images.pixels[part].float(), (px, px), mode="bilinear", antialias=True)
            hits += int((model((crops - self.mean) / self.std).argmax(1) == images.targets[part]).sum())
        return hits / len(rows)

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for i, parameter in enumerate(self._parameters()):
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{i}"] = buffer
        state = {"step": self.step_count, "seconds": self.seconds, "recipe": asdict(self.recipe)}
        partial = path.with_suffix(".partial")
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, {"state": json.dumps(state)})
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same recipe.

        Raises:
            ValueError: The checkpoint belongs to another recipe.
        """
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
        if state["recipe"] != json.loads(json.dumps(asdict(self.recipe))):
            raise ValueError(f"{path} was made with other settings; use those, or another OUT")
        tensors = load_file(path)

        def pick(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(pick("model."))
        self.average = pick("average.")
        for i, parameter in enumerate(self._parameters()):
            self.optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{i}"]
        self.step_count, self.seconds = state["step"], state["seconds"]

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


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
    parser.add_argument("--init", type=spec_of, help="start from these weights: imagenet, demo or a .safetensors file")
    parser.add_argument("--batch", type=int, default=Recipe.batch, help="images per step")
    parser.add_argument("--peak-lr", type=float, default=Recipe.peak_lr, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="faster on processors with AVX512-BF16 or AMX")
    parser.add_argument("--version", default="1", help="names these weights in answers and metrics")
    parser.add_argument("--notes", default="", help="shown to users beside the model's name")
    options = parser.parse_args()
    augmentation = Augmentation(area=tuple(options.crop_area))
    try:
        model, origin = load_model(options.init) if options.init else (None, None)
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
    except (DatasetError, WeightsError, ValueError) as error:
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
