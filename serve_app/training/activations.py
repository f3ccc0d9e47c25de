"""Cache what a frozen backbone gives for each view of each photo, so that training never runs it again."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from tqdm import tqdm

from serve_app.files import atomic_write, create_folder
from serve_app.inference.runtimes.folding import fold
from serve_app.training.augment import Augmentation, augment
from serve_app.training.data import ImageDataset
from serve_app.training.trainer import MEAN, STD

BATCH = 32
SAVE_EVERY = 64  # batches between notes of how far the cache is


@dataclass(frozen=True)
class Activations:
    """Outputs of a frozen backbone for N photos in V views; view 0 is the center square, the others are augmented."""

    maps: list[np.ndarray]  # by view: stage 3's output, float16 (N, 256, h, w), on disk
    features: Tensor  # pooled output of stage 4, float16 (1 + V, N, 512): the mirrored center square, then each view


def compute_activations(
    model: ResNet, dataset: ImageDataset, views: int, options: Augmentation, seed: int, folder: Path, bf16: bool
) -> Activations:
    """Run the backbone once per view, or continue an interrupted run; a complete cache is only opened.

    Args:
        model: The backbone in eval mode, with the initial weights; it is not changed.
        dataset: Photos of the side that the model will get.
        views: Number of views.
        options: Ranges of the augmented views.
        seed: Of the augmentation.
        folder: Where the cache is; several caches can share it.
        bf16: Compute in bfloat16, which halves the time on CPUs that have it.
    """
    px, rows = dataset.pixels.shape[-1], len(dataset.pixels)
    photos = hashlib.sha256("".join(dataset.digests).encode()).hexdigest()  # classes do not matter here
    settings = {"photos": photos, "weights": _digest(model), "px": px, "options": asdict(options)}
    settings |= {"seed": seed, "bf16": bf16}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    create_folder(folder)
    stages = _Stages(model, bf16)
    maps: list[np.ndarray] = []
    features: list[Tensor] = []
    for view in range(views):
        prefix = folder / f"{key}-{view}"
        shape = tuple(stages.third(normalize(dataset.pixels[:1].float())).shape[1:])
        stored = _memmap(prefix.with_suffix(".maps.npy"), (rows, *shape))
        maps.append(stored)
        mirrored = view == 0  # augmented views are mirrored at random
        pooled = _memmap(prefix.with_suffix(".features.npy"), (1 + mirrored, rows, 512))
        progress = prefix.with_suffix(".json")
        done = json.loads(progress.read_text())["rows"] if progress.exists() else 0
        with tqdm(total=rows, initial=done, desc=f"activations, view {view + 1}/{views}", unit=" photos") as bar:
            for number, start in enumerate(range(done, rows, BATCH), 1):
                part = slice(start, start + BATCH)
                pixels = dataset.pixels[part]
                generator = torch.Generator().manual_seed((seed * 1009 + view) * 1_000_003 + start)
                crops = augment(pixels, px, options, generator) if view else pixels.float()
                stored[part], pooled[:, part] = stages(crops, mirrored)
                bar.update(len(pixels))
                if number % SAVE_EVERY == 0 or start + BATCH >= rows:
                    stored.flush()
                    pooled.flush()
                    with atomic_write(progress) as unfinished:
                        unfinished.write_text(json.dumps({"rows": min(start + BATCH, rows), **settings}))
        features.append(torch.from_numpy(np.array(pooled)))
    return Activations(maps, torch.cat(features))


class _Stages:
    """Stages 1 to 3 and 4 of a copy of a backbone, with folded batch norms."""

    def __init__(self, model: ResNet, bf16: bool) -> None:
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        net = fold(copy.deepcopy(model)).to(self._dtype, memory_format=torch.channels_last)
        self._third = nn.Sequential(net.conv1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3)
        self._fourth = net.layer4

    @torch.inference_mode()
    def third(self, crops: Tensor) -> Tensor:
        """Return stage 3's output for normalized crops."""
        output: Tensor = self._third(crops.to(self._dtype, memory_format=torch.channels_last))
        return output

    @torch.inference_mode()
    def __call__(self, crops: Tensor, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return stage 3's output of crops with values 0-255, and pooled features, with those of its mirror image."""
        maps = self.third(normalize(crops))
        pooled = [self._fourth(m).float().mean((2, 3)) for m in ((maps.flip(3), maps) if mirrored else (maps,))]
        return maps.half().numpy(), torch.stack(pooled).half().numpy()


def normalize(crops: Tensor) -> Tensor:
    """Return crops with values 0-255 as the network takes them."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return (crops - mean) / std


def _memmap(path: Path, shape: Sequence[int]) -> np.memmap:
    """Open an array on disk, or create it; one of another shape, left by a crash, is replaced."""
    if path.exists():
        try:
            array: np.memmap = np.load(path, mmap_mode="r+")
            if array.shape == tuple(shape):
                return array
        except ValueError:
            pass
    return np.lib.format.open_memmap(path, "w+", np.float16, tuple(shape))


def _digest(model: ResNet) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if not name.startswith("fc."):  # random where the file has none
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
