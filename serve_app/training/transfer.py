"""Train by a recipe file: a head on a frozen backbone, judged by sources that were left out."""

from __future__ import annotations

import copy
import datetime
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet, resnet18
from tqdm import tqdm

from serve_app.config import WeightsConfig
from serve_app.errors import DatasetError
from serve_app.files import create_folder
from serve_app.inference.torch_model import publish, to_half
from serve_app.model_card import ImageTransform
from serve_app.training.class_map import Photo, limit_unknown, list_photos
from serve_app.training.data import ImageDataset, load_images
from serve_app.training.features import BATCH, compute_features, normalize
from serve_app.training.head import add_detail, make_targets, train_head
from serve_app.training.initial import InitialWeights, load_initial_weights
from serve_app.training.judge import Answers, Fold, calibrate_on, make_folds, measure
from serve_app.training.trainer import MEAN, STD
from serve_app.training.transfer_recipe import TransferRecipe, load_recipe

PHOTOS_COMPARED = 200  # by which half precision is measured
IN_CARD = {"classes", "left_out", "licenses", "notes", "version"}  # fields of the recipe that the card has elsewhere


@dataclass(frozen=True)
class TransferOptions:
    """The options of `serve-app train --recipe`; its help describes each of them."""

    data: Path
    out: Path
    recipe: Path
    weights: str = "auto"
    skip_broken: bool = False
    seed: int = 0
    bf16: bool = False
    version: str | None = None
    notes: str = ""
    command: str = ""  # the command line, for the card


@dataclass(frozen=True)
class Material:
    """Everything that a training or a fold needs."""

    recipe: TransferRecipe
    photos: list[Photo]
    class_ids: Tensor  # int64, (N,): -1 is a photo of no class
    source_ids: Tensor  # int64, (N,)
    small: Tensor  # bool, (N,): photos of sources whose photos were enlarged
    features: Tensor  # float16, (V, N, 512): of each view of each photo
    seed: int


@dataclass(frozen=True)
class FoldOutcome:
    """What a training without some sources answers to photos that it has not seen."""

    judged: Answers
    same_source: Answers
    unknown: Answers


def train_by_recipe(options: TransferOptions) -> WeightsConfig:
    """Train, judge and publish; features that an interrupted run has computed are used again.

    Returns:
        The weights written to ``OUT/model.safetensors``, with their card beside them.

    Raises:
        ServiceError: Recipe, photos or weights cannot be used; the message says why.
        OSError: A file cannot be read or written.
    """
    started = time.monotonic()
    recipe = load_recipe(options.recipe)
    init = load_initial_weights(options.weights)
    if init is None:
        raise DatasetError("--recipe trains on the activations of other weights; --weights scratch has none")
    create_folder(options.out)
    photos = list_photos(options.data, recipe.class_map, recipe.classes, options.out / "unpacked")
    photos = limit_unknown(photos, recipe.unknown_per_folder, options.seed)
    _check_small_photos(recipe, {photo.source for photo in photos})
    dataset, photos = _load(photos, recipe, options.skip_broken)
    counts = Counter(photo.source for photo in photos if photo.label)
    unknown = sum(not photo.label for photo in photos)
    by_source = ", ".join(f"{source} {count}" for source, count in counts.most_common())
    tqdm.write(f"{counts.total()} photos of {len(recipe.classes)} classes ({by_source}), {unknown} of none")
    coarse_px = recipe.small_photos.px if recipe.small_photos.sources else None
    cache, augmentation, seed = options.out / "features", recipe.augment_options(), options.seed
    features = compute_features(init.model, dataset, recipe.views, coarse_px, augmentation, seed, cache, options.bf16)
    class_ids = torch.where(dataset.targets < len(recipe.classes), dataset.targets, -1)
    source_ids = torch.from_numpy(np.unique([photo.source for photo in photos], return_inverse=True)[1])
    small = torch.tensor([photo.source in recipe.small_photos.sources for photo in photos])
    material = Material(recipe, photos, class_ids, source_ids, small, features, options.seed)
    folds = make_folds(photos, recipe.judge.leave_out, options.seed)
    outcomes = [_run_fold(material, sources, fold) for sources, fold in zip(recipe.judge.leave_out, folds, strict=True)]
    card = _card(options, material, dataset, init)
    if outcomes:
        card |= _judgment(material, outcomes, dataset.fingerprint)
    tqdm.write(f"training on all {len(photos)} photos")
    model = _assemble(init.model, _train(material, torch.arange(len(photos))))
    card["training"] |= {
        "minutes": round((time.monotonic() - started) / 60, 1),
        "float16": compare_half_precision(model, dataset.pixels[:: max(1, len(photos) // PHOTOS_COMPARED)]),
    }
    written = publish(model.state_dict(), card, options.out)
    return WeightsConfig(source=str(options.out / "model.safetensors"), sha256=written.sha256)


@torch.inference_mode()
def compare_half_precision(model: ResNet, pixels: Tensor) -> dict[str, float]:
    """Return how far scores differ between float32 weights and those that ``publish`` writes, read as float32."""
    rounded = copy.deepcopy(model)
    rounded.load_state_dict({k: v.to(model.state_dict()[k].dtype) for k, v in to_half(model.state_dict()).items()})
    differences = [
        (model(images).softmax(1) - rounded(images).softmax(1)).abs().max().item()
        for images in (normalize(part.float()) for part in pixels.split(BATCH))
    ]
    return {"images": len(pixels), "largest_score_difference": round(max(differences), 6)}


def _run_fold(material: Material, sources: Sequence[str], fold: Fold) -> FoldOutcome:
    """Train without some sources, and answer their photos."""
    head = _train(material, fold.training)
    judged, same_source, unknown = (
        _score(material, head, rows) for rows in (fold.judged, fold.same_source, fold.unknown)
    )
    right = judged.scores.argmax(1) == material.class_ids.numpy()[judged.rows]
    tqdm.write(f"without {', '.join(sources)}: {right.mean():.3f} of its {len(right)} photos are right")
    return FoldOutcome(judged, same_source, unknown)


def _check_small_photos(recipe: TransferRecipe, sources: set[str]) -> None:
    if wrong := sorted({*recipe.small_photos.sources} - sources):
        raise DatasetError(f"small_photos: the map has no source {', '.join(wrong)}, but {', '.join(sorted(sources))}")
    if sources <= {*recipe.small_photos.sources}:
        raise DatasetError(
            "small_photos: all sources are small; only other photos can show what detail does to features"
        )


def _load(photos: list[Photo], recipe: TransferRecipe, skip_broken: bool) -> tuple[ImageDataset, list[Photo]]:
    """Decode photos; those of no class get the id after the last class, with an empty name."""
    labels = (*recipe.classes, "")
    ids = {label: i for i, label in enumerate(labels)}
    dataset = load_images([(photo.path, ids[photo.label]) for photo in photos], labels, recipe.px, skip_broken)
    by_path = {photo.path: photo for photo in photos}
    return dataset, [by_path[path] for path in dataset.paths]


def _train(material: Material, rows: Tensor) -> nn.Linear:
    """Train a head on some of the photos."""
    recipe, class_ids = material.recipe, material.class_ids
    if not recipe.unknown_weight:
        rows = rows[class_ids[rows] >= 0]
    targets = make_targets(
        class_ids,
        material.source_ids,
        rows,
        len(recipe.classes),
        smoothing=recipe.label_smoothing,
        power=recipe.class_weight_power,
        unknown_weight=recipe.unknown_weight,
        source_prior=recipe.source_prior,
    )
    features = material.features
    if recipe.small_photos.sources:
        features = add_detail(features, material.small, rows)
    return train_head(features, rows, targets, recipe.head, material.seed)


@torch.inference_mode()
def _score(material: Material, head: nn.Linear, rows: Tensor) -> Answers:
    """Return the scores of the center squares of some photos."""
    return Answers(head(material.features[0, rows].float()).softmax(1).numpy(), rows.numpy())


def _assemble(backbone: ResNet, head: nn.Linear) -> ResNet:
    """Put backbone and head together."""
    model = resnet18(num_classes=head.out_features)
    state = {name: value for name, value in backbone.state_dict().items() if not name.startswith("fc.")}
    state |= {f"fc.{name}": value for name, value in head.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


def _card(options: TransferOptions, material: Material, dataset: ImageDataset, init: InitialWeights) -> dict[str, Any]:
    """Return the card's fields that say what the weights are and how they were made."""
    recipe, photos = material.recipe, material.photos
    counts = Counter(photo.source for photo in photos if photo.label)
    unknown = sum(not photo.label for photo in photos)
    return {
        "name": "resnet18",
        "version": options.version or recipe.version,
        "labels": tuple(recipe.classes),
        "descriptions": recipe.classes,
        "left_out": recipe.left_out,
        "licenses": recipe.licenses,
        "transform": ImageTransform(resize_px=recipe.px, crop_px=recipe.px, mean=MEAN, std=STD),
        "notes": options.notes or recipe.notes,
        "training": {
            "date": f"{datetime.date.today()}",
            "data": f"{counts.total()} photos of {len(recipe.classes)} classes, {unknown} of none",
            "sources": dict(counts),
            "fingerprint": dataset.fingerprint,
            "command": options.command,
            "seed": options.seed,
            "recipe": recipe.model_dump(mode="json", exclude=IN_CARD | {"class_map"}),
            "torch": torch.__version__,
            "init": init.origin,
        },
    }


def _judgment(material: Material, outcomes: Sequence[FoldOutcome], fingerprint: str) -> dict[str, Any]:
    """Return the card's calibration and metrics, from photos that were left out of a training."""
    recipe, targets, labels = material.recipe, material.class_ids.numpy(), tuple(material.recipe.classes)
    judged, unknown = [outcome.judged for outcome in outcomes], [outcome.unknown for outcome in outcomes]
    same_source = [outcome.same_source for outcome in outcomes]
    calibration = calibrate_on([*judged, *same_source], unknown, targets, recipe.judge.keep_right, fingerprint)
    metrics = {"left-out sources": measure(judged, targets, labels, calibration)}
    for sources, answers in zip(recipe.judge.leave_out, judged, strict=True):
        metrics[f"without {', '.join(sources)}"] = measure([answers], targets, labels, calibration)
    if any(len(answers.rows) for answers in same_source):
        metrics["same source"] = measure(same_source, targets, labels, calibration)
    return {"calibration": calibration, "metrics": metrics}
