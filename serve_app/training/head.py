"""Train a linear head on cached features of a frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from serve_app.training.transfer_recipe import HeadConfig

MIN_DEVIATION = 1e-4  # of a feature, below which it counts as constant


@dataclass(frozen=True)
class Targets:
    """What each row should be answered, and what the loss makes of it."""

    probabilities: Tensor  # float32, (N, C)
    weights: Tensor  # float32, (N,): of the row in the loss
    offsets: Tensor  # float32, (N, C): added to the logits in training

    def __getitem__(self, rows: Tensor) -> Targets:
        return Targets(self.probabilities[rows], self.weights[rows], self.offsets[rows])

    def loss(self, logits: Tensor) -> Tensor:
        """Return the weighted mean of the cross-entropy."""
        losses = F.cross_entropy(logits + self.offsets, self.probabilities, reduction="none")
        return (losses * self.weights).sum() / self.weights.sum()


def make_targets(
    class_ids: Tensor,
    source_ids: Tensor,
    rows: Tensor,
    classes: int,
    *,
    smoothing: float,
    power: float,
    unknown_weight: float,
    source_prior: float,
) -> Targets:
    """Return the targets of all photos: smoothed labels, weighted by class size; equal scores for photos of no class.

    Args:
        class_ids: int64, (N,); -1 is a photo of no class.
        source_ids: int64, (N,).
        rows: int64, (n,): the photos that train, whose classes are counted.
        classes: Number of classes.
        smoothing: Probability spread over all classes.
        power: A class of n photos weighs n ** power; the mean weight of training photos with a class is 1.
        unknown_weight: Weight of a photo of no class.
        source_prior: Share of log P(class | source) in the offset of a photo with a class (logit adjustment, Menon et
            al. 2021, arXiv:2007.07314): what the source says about the class need not be learned from the photo.
    """
    known = class_ids >= 0
    training = rows[known[rows]]
    by_class = torch.bincount(class_ids[training], minlength=classes).clamp(1).float() ** power
    by_class /= by_class[class_ids[training]].mean()
    weights = torch.where(known, by_class[class_ids], unknown_weight)
    labels = F.one_hot(class_ids.clamp(0), classes) * (1 - smoothing) + smoothing / classes
    counts = torch.ones(int(source_ids.max()) + 1, classes)  # one more than there are, so that no logarithm is infinite
    counts.index_put_((source_ids[training], class_ids[training]), torch.ones(len(training)), accumulate=True)
    prior = source_prior * (counts / counts.sum(1, keepdim=True)).log()
    offsets = torch.where(known[:, None], prior[source_ids], 0.0)
    return Targets(torch.where(known[:, None], labels, 1 / classes), weights, offsets)


def add_detail(features: Tensor, small: Tensor, rows: Tensor) -> Tensor:
    """Move the features of small photos to where those of sharp photos of the same things would be.

    The way is the mean difference between the center squares of other photos and their coarse views. The coarse view of
    small photos stays as it is. So each class trains on sharp and on coarse views, and neither speaks for a class.

    Args:
        features: float16, (V, N, 512): of the center square, of augmented views, and of the coarse view.
        small: bool, (N,).
        rows: int64, (n,): the photos that train.
    """
    sharp, moved = rows[~small[rows]], features.clone()
    if len(sharp):
        moved[:-1, small] += (features[0, sharp].float() - features[-1, sharp].float()).mean(0).half()
    return moved


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
