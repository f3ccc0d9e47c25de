"""Train a linear head, then stage 4 with it, on cached outputs of a frozen backbone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from serve_app.training.transfer_recipe import HeadConfig, LastStageConfig

MIN_DEVIATION = 1e-4  # of a feature, below which it counts as constant


@dataclass(frozen=True)
class Targets:
    """What each row should be answered: probabilities by class, and the weight of the row in the loss."""

    probabilities: Tensor  # float32, (N, C)
    weights: Tensor  # float32, (N,)

    def __getitem__(self, rows: Tensor) -> Targets:
        return Targets(self.probabilities[rows], self.weights[rows])

    def loss(self, logits: Tensor) -> Tensor:
        """Return the weighted mean of the cross-entropy."""
        return (F.cross_entropy(logits, self.probabilities, reduction="none") * self.weights).sum() / self.weights.sum()


def make_targets(
    class_ids: Tensor, rows: Tensor, classes: int, smoothing: float, power: float, unknown_weight: float
) -> Targets:
    """Return the targets of all photos: smoothed labels, weighted by class size; equal scores for photos of no class.

    Args:
        class_ids: int64, (N,); -1 is a photo of no class.
        rows: int64, (n,): the photos that train, whose classes are counted.
        classes: Number of classes.
        smoothing: Probability spread over all classes.
        power: A class of n photos weighs n ** power; the mean weight of training photos with a class is 1.
        unknown_weight: Weight of a photo of no class.
    """
    known = class_ids >= 0
    training = class_ids[rows][known[rows]]
    by_class = torch.bincount(training, minlength=classes).clamp(1).float() ** power
    by_class /= by_class[training].mean()
    weights = torch.where(known, by_class[class_ids], unknown_weight)
    labels = F.one_hot(class_ids.clamp(0), classes) * (1 - smoothing) + smoothing / classes
    return Targets(torch.where(known[:, None], labels, 1 / classes), weights)


def train_head(features: Tensor, rows: Tensor, targets: Targets, config: HeadConfig, seed: int) -> nn.Linear:
    """Train a linear head on standardized features; the standardization is folded into its weights.

    Args:
        features: float16, (V, N, 512): the pooled features of each view of each photo.
        rows: int64, (n,): the photos that train.
        targets: Of all N photos.
        config: Epochs, rates and regularization.
        seed: Of initial weights, order and dropout.
    """
    torch.manual_seed(seed)
    views, width, classes = len(features), features.shape[2], targets.probabilities.shape[1]
    chosen = features[:, rows].float().flatten(0, 1)
    wanted = targets[rows.repeat(views)]
    mean, deviation = chosen.mean(0), chosen.std(0).clamp(MIN_DEVIATION)
    chosen = (chosen - mean) / deviation
    head = nn.Linear(width, classes)
    steps = config.epochs * -(-len(chosen) // config.batch)
    optimizer = torch.optim.AdamW(head.parameters(), weight_decay=config.weight_decay)
    schedule = OneCycleLR(optimizer, config.peak_lr, total_steps=steps + 1)
    for _ in tqdm(range(config.epochs), "head", unit=" epochs", leave=False):
        for batch in torch.randperm(len(chosen)).split(config.batch):
            loss = wanted[batch].loss(head(F.dropout(chosen[batch], config.dropout)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    folded = nn.Linear(width, classes)
    with torch.no_grad():
        folded.weight.copy_(head.weight / deviation)
        folded.bias.copy_(head.bias - folded.weight @ mean)
    return folded


def tune_last_stage(
    stage: nn.Sequential,
    head: nn.Linear,
    maps: Sequence[np.ndarray],
    rows: Tensor,
    targets: Targets,
    config: LastStageConfig,
    seed: int,
) -> tuple[nn.Sequential, nn.Linear]:
    """Train copies of stage 4 and head on activations of stage 3.

    An epoch takes a random view of each photo, and mirrors half of them. Batch norms keep their statistics: the
    cached activations are those of a frozen network, and small batches would blur them.

    Args:
        stage: Stage 4 of the backbone.
        head: The head that train_head returned.
        maps: Stage 3's float16 output (N, 256, h, w) of each view.
        rows: int64, (n,): the photos that train.
        targets: Of all N photos.
        config: Epochs, rates and regularization.
        seed: Of order, views, mirroring and dropout.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    stage, head = copy.deepcopy(stage).eval().to(memory_format=torch.channels_last), copy.deepcopy(head)
    if not config.epochs:
        return stage, head
    per_epoch = -(-len(rows) // config.batch)
    optimizer = torch.optim.AdamW(
        [{"params": stage.parameters()}, {"params": head.parameters()}], weight_decay=config.weight_decay
    )
    schedule = OneCycleLR(optimizer, [config.peak_lr, config.head_lr], total_steps=config.epochs * per_epoch + 1)
    for epoch in range(config.epochs):
        order = rows[torch.randperm(len(rows), generator=generator)]
        average = 0.0
        with tqdm(total=per_epoch, desc=f"stage 4, epoch {epoch + 1}/{config.epochs}", leave=False) as bar:
            for step, batch in enumerate(order.split(config.batch)):
                views = torch.randint(len(maps), (len(batch),), generator=generator)
                chosen = zip(views.tolist(), batch.tolist(), strict=True)
                activations = torch.from_numpy(np.stack([maps[view][row] for view, row in chosen])).float()
                mirrored = torch.rand(len(batch), generator=generator) < 0.5
                activations[mirrored] = activations[mirrored].flip(3)
                features = stage(activations.to(memory_format=torch.channels_last)).mean((2, 3))
                loss = targets[batch].loss(head(F.dropout(features, config.dropout)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                average = loss.item() if not step else 0.98 * average + 0.02 * loss.item()
                bar.update()
                bar.set_postfix(loss=f"{average:.3f}", refresh=False)
    return stage, head


@torch.inference_mode()
def pooled(stage: nn.Sequential, maps: np.ndarray, rows: Tensor, flip: bool = False, batch: int = 128) -> Tensor:
    """Return stage 4's pooled features, float32 (n, 512), of the chosen rows of stage 3's activations."""
    parts = []
    for part in rows.split(batch):
        activations = torch.from_numpy(maps[part.numpy()]).float()
        activations = (activations.flip(3) if flip else activations).to(memory_format=torch.channels_last)
        parts.append(stage(activations).mean((2, 3)))
    return torch.cat(parts)
