"""Cache what a frozen backbone gives for each view of each photo, so that training never runs it again."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from tqdm import tqdm

from serve_app.files import atomic_write, create_folder
from serve_app.inference.runtimes.folding import fold
from serve_app.training.augment import Augmentation, augment, lose_detail
from serve_app.training.data import ImageDataset
from serve_app.training.trainer import MEAN, STD

BATCH = 32
SAVE_EVERY = 64  # batches between notes of how far the cache is
WIDTH = 512  # numbers per view

Cropper = Callable[[Tensor, int], Tensor]  # uint8 photos, (n, 3, S, S), and the first one's row -> float32 crops, 0-255


def compute_features(
    model: ResNet,
    dataset: ImageDataset,
    views: int,
    coarse_px: int | None,
    options: Augmentation,
    seed: int,
    folder: Path,
    bf16: bool,
) -> Tensor:
    """Run the backbone once per view, or continue an interrupted run; a complete cache is only opened.

    Args:
        model: The backbone in eval mode, with the initial weights; it is not changed.
        dataset: Photos of the side that the model will get.
        views: Number of views: the center square, then augmented ones.
        coarse_px: Side of one more view, the last: the center square with the detail of a photo of this side.
        options: Ranges of the augmented views.
        seed: Of the augmentation.
        folder: Where the cache is; several caches can share it.
        bf16: Compute in bfloat16, which halves the time on CPUs that have it.

    Returns:
        float16, (V, N, 512): the pooled features of each view of each photo.
    """
    photos = hashlib.sha256("".join(dataset.digests).encode()).hexdigest()  # classes do not matter here
    settings = {"photos": photos, "weights": _digest(model), "px": dataset.pixels.shape[-1], "bf16": bf16}
    crops: list[tuple[dict[str, Any], Cropper]] = [({}, lambda pixels, row: pixels.float())]
    for view in range(1, views):
        drawn = {"options": asdict(options), "seed": seed, "view": view}
        crops.append((drawn, partial(_augmented, options, seed, view)))
    if coarse_px:
        crops.append(({"coarse_px": coarse_px}, lambda pixels, row: lose_detail(pixels.float(), coarse_px)))
    create_folder(folder)
    backbone = _Backbone(model, bf16)
    return torch.stack(
        [
            backbone.features(dataset.pixels, crop, folder, settings | own, f"features, view {number}/{len(crops)}")
            for number, (own, crop) in enumerate(crops, 1)
        ]
    )


def normalize(crops: Tensor) -> Tensor:
    """Return crops with values 0-255 as the network takes them."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return (crops - mean) / std


class _Backbone:
    """A copy of a backbone with folded batch norms and without the last layer."""

    def __init__(self, model: ResNet, bf16: bool) -> None:
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        net = fold(copy.deepcopy(model)).to(self._dtype, memory_format=torch.channels_last)
        stages = (net.layer1, net.layer2, net.layer3, net.layer4)
        self._stages = nn.Sequential(net.conv1, net.relu, net.maxpool, *stages)

    @torch.inference_mode()
    def __call__(self, crops: Tensor) -> np.ndarray:
        """Return the pooled features, float16 (n, 512), of crops with values 0-255."""
        maps = self._stages(normalize(crops).to(self._dtype, memory_format=torch.channels_last))
        pooled: np.ndarray = maps.float().mean((2, 3)).half().numpy()
        return pooled

    def features(self, pixels: Tensor, crop: Cropper, folder: Path, settings: dict[str, Any], title: str) -> Tensor:
        """Return the features of one view of all photos, float16, (N, 512)."""
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        path, progress, shape = folder / f"{key}.npy", folder / f"{key}.json", (len(pixels), WIDTH)
        stored, done = _open(path, shape), 0
        if stored is None:
            stored = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        elif progress.exists():
            done = json.loads(progress.read_text())["rows"]
        with tqdm(total=len(pixels), initial=done, desc=title, unit=" photos") as bar:
            for number, start in enumerate(range(done, len(pixels), BATCH), 1):
                part = pixels[start : start + BATCH]
                stored[start : start + BATCH] = self(crop(part, start))
                bar.update(len(part))
                if number % SAVE_EVERY == 0 or start + BATCH >= len(pixels):
                    stored.flush()
                    with atomic_write(progress) as unfinished:
                        unfinished.write_text(json.dumps({"rows": start + len(part), **settings}))
        return torch.from_numpy(np.array(stored))


def _augmented(options: Augmentation, seed: int, view: int, pixels: Tensor, row: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed * 1009 + view) * 1_000_003 + row)
    return augment(pixels, pixels.shape[-1], options, generator)


def _open(path: Path, shape: tuple[int, int]) -> np.memmap | None:
    """Open an array on disk; None if there is none, or one that a crash left incomplete."""
    try:
        np.load(path, mmap_mode="r")  # raises ValueError for a file that was cut; r+ would lengthen it
        array: np.memmap = np.load(path, mmap_mode="r+")
    except (FileNotFoundError, ValueError):
        return None
    return array if array.shape == shape else None


def _digest(model: ResNet) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if not name.startswith("fc."):  # random where the file has none
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
