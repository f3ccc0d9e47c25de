"""What is trained and how: recipe, model, moving average, optimiser, checkpoints."""

from __future__ import annotations

import json
import math
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

from serve_app.training.data import LabelledImages

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
