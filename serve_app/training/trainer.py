"""Model, its moving average and the optimiser: steps, validation, checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from serve_app.files import atomic_write
from serve_app.training.data import LabeledImages
from serve_app.training.recipe import Recipe
from serve_app.training.team import Team

# ImageNet's statistics: what torchvision's own weights use, and close enough for any photos.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


class Trainer:
    """Model, its moving average and the optimiser, and where in the schedule they stand.

    Attributes:
        history: A row per epoch: what the learning curve shows.
        best: The average of the epoch with the least validation loss, while patience asks for it.
    """

    def __init__(
        self,
        labels: Sequence[str],
        recipe: Recipe,
        steps_per_epoch: int,
        device: torch.device = CPU,
        team: Team | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        """Build an untrained model for ``labels``."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.steps_per_epoch, self.device, self.team = recipe, steps_per_epoch, device, team or Team()
        self.model = resnet18(num_classes=len(labels), zero_init_residual=True)
        self.model.to(device, memory_format=torch.channels_last)
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
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) * 255 for v in (MEAN, STD))
        self._weights = None if class_weights is None else class_weights.to(device)

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Take another model's weights; its last layer only if it has as many classes."""
        own = self.model.state_dict()
        self.model.load_state_dict({k: state[k] if state[k].shape == v.shape else v for k, v in own.items()})
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}

    def learning_rate(self) -> float:
        """Constant for the head alone; then linear warm-up, then cosine to zero."""
        head = self.recipe.head_epochs * self.steps_per_epoch
        if self.step_count < head:
            return self.recipe.head_lr
        done = (self.step_count - head) / (self.recipe.epochs * self.steps_per_epoch - head)
        if done < self.recipe.warm_up:
            return self.recipe.peak_lr * (done + 1e-3) / self.recipe.warm_up
        return (
            self.recipe.peak_lr
            * 0.5
            * (1 + math.cos(math.pi * (done - self.recipe.warm_up) / (1 - self.recipe.warm_up)))
        )

    def step(self, crops: Tensor, targets: Tensor) -> float:
        """One optimiser step on float32 crops (N, 3, H, W) in 0-255; returns the loss."""
        self._freeze(self.step_count < self.recipe.head_epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            logits = self.model((crops - self.mean) / self.std)
        loss = F.cross_entropy(logits.float(), targets, self._weights, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        self.team.average([*gradients, *(b for b in self.model.buffers() if b.is_floating_point())])
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
    def validate(self, images: LabeledImages, rows: Tensor, px: int) -> tuple[float, float]:
        """Loss and top-1 of the averaged weights on some rows, whole images at ``px``."""
        model = resnet18(num_classes=len(images.labels)).eval().to(self.device)
        model.load_state_dict(self.average)
        sums = torch.zeros(2, device=self.device)
        for part in rows[self.team.rank :: self.team.size].split(self.recipe.batch):
            pixels, targets = images.pixels[part].to(self.device).float(), images.targets[part].to(self.device)
            crops = F.interpolate(pixels, (px, px), mode="bilinear", antialias=True)
            logits = model((crops - self.mean) / self.std)
            sums += torch.stack(
                (F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(1) == targets).sum())
            )
        self.team.average([sums])
        loss, hits = (sums * self.team.size / len(rows)).tolist()
        return loss, hits

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Keep a row of history and, with patience, the best weights."""
        self.history.append(row)
        if self.recipe.patience and self._epochs_since_best() == 0:
            self.best = {name: value.clone() for name, value in self.average.items()}

    def stops(self) -> bool:
        """Whether patience is at its end."""
        least = self.recipe.head_epochs + self.recipe.patience
        return 0 < self.recipe.patience <= self._epochs_since_best() and len(self.history) > least

    def _epochs_since_best(self) -> int:
        losses = [row.get("validation_loss", 0.0) for row in self.history]
        return len(losses) - 1 - losses.index(min(losses))

    @property
    def result(self) -> dict[str, Tensor]:
        """What to publish, on the CPU."""
        return {name: value.cpu() for name, value in (self.best or self.average).items()}

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()} | {f"best.{k}": v for k, v in self.best.items()}
        for i, parameter in enumerate(self._parameters()):
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{i}"] = buffer
        state = {
            "step": self.step_count,
            "seconds": self.seconds,
            "history": self.history,
            "recipe": asdict(self.recipe),
        }
        with atomic_write(path) as unfinished:
            save_file({k: v.contiguous() for k, v in tensors.items()}, unfinished, {"state": json.dumps(state)})

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same recipe.

        Raises:
            ValueError: The checkpoint belongs to another recipe, or to other data.
        """
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
        mine = json.loads(json.dumps(asdict(self.recipe)))
        if other := [name for name in mine if state["recipe"].get(name) != mine[name]]:
            raise ValueError(
                f"{path} was made with other settings ({', '.join(other)}); use those, another OUT, or --fresh"
            )
        tensors = load_file(path, str(self.device))

        def pick(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(pick("model."))
        self.average, self.best, self.history = pick("average."), pick("best."), state["history"]
        for i, parameter in enumerate(self._parameters()):
            if (buffer := tensors.get(f"momentum.{i}")) is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self.step_count, self.seconds = state["step"], state["seconds"]

    def _freeze(self, head_only: bool) -> None:
        self.model.train(not head_only)  # frozen batch norms keep their statistics
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not head_only or name.startswith("fc."))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]
