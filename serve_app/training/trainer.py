"""Model, moving average and optimizer: training steps, validation, checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models import resnet18

from serve_app.errors import TrainingError
from serve_app.inference.torch_model import write_tensors
from serve_app.training.data import ImageDataset
from serve_app.training.recipe import Recipe
from serve_app.training.worker_group import WorkerGroup

# ImageNet's statistics, as in torchvision's own weights; other photos differ little.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
EMA_WARM_UP_STEPS = 10  # a larger number forgets the initial weights faster


class Trainer:
    """A model with random weights, its moving average, its optimizer, and their position in the schedule."""

    def __init__(
        self,
        labels: Sequence[str],
        recipe: Recipe,
        steps_per_epoch: int,
        device: torch.device = CPU,
        group: WorkerGroup | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.steps_per_epoch, self.device = recipe, steps_per_epoch, device
        self.group = group or WorkerGroup()
        self.model = resnet18(num_classes=len(labels), zero_init_residual=True)
        self.model.to(device, memory_format=torch.channels_last)
        self.average = AveragedModel(self.model, multi_avg_fn=_ema_with_warm_up(recipe.ema), use_buffers=True).eval()
        self.average.n_averaged.fill_(1)  # the initial weights count; at 0 the first update would replace them
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain}]
        self.optimizer = torch.optim.SGD(groups, lr=recipe.peak_lr, momentum=recipe.momentum, nesterov=True)
        self.step_count, self.seconds = 0, 0.0
        self.history: list[dict[str, Any]] = []  # a row per epoch
        self.best: dict[str, Tensor] = {}  # average of the best epoch so far; empty without patience
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) * 255 for v in (MEAN, STD))
        self._class_weights = None if class_weights is None else class_weights.to(device)

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Copy another model's weights; the last layer only if it has as many classes."""
        own = self.model.state_dict()
        self.model.load_state_dict({k: state[k] if state[k].shape == v.shape else v for k, v in own.items()})
        self.average.module.load_state_dict(self.model.state_dict())

    def learning_rate(self) -> float:
        """Return the learning rate: constant for the last layer only, then linear warm-up, then cosine to zero."""
        head_steps = self.recipe.head_epochs * self.steps_per_epoch
        if self.step_count < head_steps:
            return self.recipe.head_lr
        progress = (self.step_count - head_steps) / (self.recipe.epochs * self.steps_per_epoch - head_steps)
        peak, warm_up = self.recipe.peak_lr, self.recipe.warm_up
        if progress < warm_up:
            return peak * (progress + 1e-3) / warm_up
        return peak * 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))

    def step(self, crops: Tensor, targets: Tensor) -> float:
        """Take one optimizer step on this worker's part of a batch, (N, 3, H, W), RGB, 0-255; return the loss."""
        self._freeze(self.step_count < self.recipe.head_epochs * self.steps_per_epoch)
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = self.learning_rate()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            logits = self.model((crops - self.mean) / self.std)
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits.float(), targets, self._class_weights, label_smoothing=smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        self.group.average([*gradients, *(b for b in self.model.buffers() if b.is_floating_point())])
        self.optimizer.step()
        self.step_count += 1
        self.average.update_parameters(self.model)
        return loss.item()

    @torch.no_grad()
    def validate(self, dataset: ImageDataset, rows: Tensor, px: int) -> tuple[float, float]:
        """Return mean loss and top-1 accuracy of the moving average on some rows, resized to ``px``."""
        sums = torch.zeros(2, device=self.device)
        for part in rows[self.group.rank :: self.group.size].split(self.recipe.batch):
            pixels, targets = dataset.pixels[part].to(self.device).float(), dataset.targets[part].to(self.device)
            crops = F.interpolate(pixels, (px, px), mode="bilinear", antialias=True)
            logits = self.average((crops - self.mean) / self.std)
            loss = F.cross_entropy(logits, targets, reduction="sum")
            sums += torch.stack((loss, (logits.argmax(1) == targets).sum()))
        self.group.average([sums])
        loss, hits = (sums * self.group.size / len(rows)).tolist()
        return loss, hits

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Append a row of history and, with patience, keep the best weights."""
        self.history.append(row)
        if self.recipe.patience and self._epochs_since_best() == 0:
            self.best = {name: value.clone() for name, value in self.average.module.state_dict().items()}

    def stops(self) -> bool:
        """Return whether the validation loss has not improved for ``patience`` epochs."""
        min_epochs = self.recipe.head_epochs + self.recipe.patience
        return 0 < self.recipe.patience <= self._epochs_since_best() and len(self.history) > min_epochs

    def _epochs_since_best(self) -> int:
        losses = [row.get("validation_loss", 0.0) for row in self.history]
        return len(losses) - 1 - losses.index(min(losses))

    @property
    def result(self) -> dict[str, Tensor]:
        """The state dict to publish, on the CPU."""
        return {name: value.cpu() for name, value in (self.best or self.average.module.state_dict()).items()}

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.module.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for i, parameter in enumerate(self._parameters()):
            if (buffer := self.optimizer.state[parameter].get("momentum_buffer")) is not None:
                tensors[f"momentum.{i}"] = buffer
        recipe = asdict(self.recipe)
        state = {"step": self.step_count, "seconds": self.seconds, "history": self.history, "recipe": recipe}
        write_tensors({k: v.contiguous() for k, v in tensors.items()}, path, {"state": json.dumps(state)})

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            TrainingError: It belongs to another recipe or to other data.
            SafetensorError: It is empty or cut; nothing has changed.
        """
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
        recipe = json.loads(json.dumps(asdict(self.recipe)))
        if different := [name for name in recipe if state["recipe"].get(name) != recipe[name]]:
            remedy = "use the same settings, another OUT, or --fresh"
            raise TrainingError(f"{path} was made with other settings ({', '.join(different)}); {remedy}")
        tensors = load_file(path, str(self.device))

        def with_prefix(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(with_prefix("model."))
        self.average.module.load_state_dict(with_prefix("average."))
        self.best, self.history = with_prefix("best."), state["history"]
        for i, parameter in enumerate(self._parameters()):
            if (buffer := tensors.get(f"momentum.{i}")) is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self.step_count, self.seconds = state["step"], state["seconds"]
        self.average.n_averaged.fill_(self.step_count + 1)

    def _freeze(self, head_only: bool) -> None:
        self.model.train(not head_only)  # frozen batch norms keep their statistics
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not head_only or name.startswith("fc."))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def _ema_with_warm_up(max_decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Build AveragedModel's update: an exponential moving average whose memory is short in the first steps."""

    @torch.no_grad()
    def update(averages: Sequence[Tensor], values: Sequence[Tensor], updates: Tensor | int) -> None:
        if averages[0].is_floating_point():
            decay = min(max_decay, int(updates) / (int(updates) + EMA_WARM_UP_STEPS))
            get_ema_multi_avg_fn(decay)(list(averages), list(values), updates)
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)  # the batch norms' step counters

    return update
