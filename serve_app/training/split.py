"""Divide DATA into training, validation and test images, and warn of problems before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from serve_app.errors import DatasetError
from serve_app.inference.weights import sha256
from serve_app.observability.feedback_store import labeled_images
from serve_app.training.data import ImageDataset, LabeledFiles, list_images

MIN_IMAGES_PER_CLASS = 10  # below, a warning
MAX_IMBALANCE = 10  # largest class over smallest; above, a warning
MAX_LABELS_SHOWN = 20


@dataclass(frozen=True)
class DatasetFiles:
    """The image files of DATA."""

    files: LabeledFiles  # for training and validation, training first
    labels: tuple[str, ...]  # class names, by class id
    training: int | None  # number of training files, if DATA has a val folder
    test: Path | None  # labeled images for the final measurement, if DATA has some


@dataclass(frozen=True)
class Split:
    """Rows of a dataset: int64, (n,) each."""

    training: Tensor
    validation: Tensor  # held out for early stopping and calibration; none is a copy of a training image


def list_dataset(data: Path, feedback: Path | None = None) -> DatasetFiles:
    """List DATA: class folders, or ``train``, ``val`` and ``test`` with class folders in them, or a CSV.

    The labeled images of a feedback store, if its folder is given, join the training images.

    Raises:
        DatasetError: DATA has no classes, only one, or one without images; or feedback has a class that DATA lacks.
    """
    parts = {name: data / name for name in ("train", "val", "test") if (data / name).is_dir()}
    files, labels = list_images(parts.get("train", data))
    files += _list_feedback(feedback, labels) if feedback else []
    if len(labels) < 2:
        raise DatasetError(f"{data}: has only one class, {labels[0]!r}; a classifier needs at least two")
    if "train" not in parts:
        return DatasetFiles(files, labels, None, None)
    validation = list_images(parts["val"], labels)[0] if "val" in parts else []
    return DatasetFiles(files + validation, labels, len(files) if validation else None, parts.get("test"))


def _list_feedback(folder: Path, labels: Sequence[str]) -> LabeledFiles:
    images = labeled_images(folder)
    if unknown := sorted({label for _, label in images} - {*labels}):
        raise DatasetError(f"{folder}: feedback has classes that DATA lacks: {', '.join(unknown)}")
    return [(path, labels.index(label)) for path, label in images]


def split_images(dataset: ImageDataset, training: int | None, validation_share: float, seed: int) -> Split:
    """Divide a dataset after its first ``training`` images, or in a random order by ``seed`` if that is None."""
    if training is None:
        rows = torch.randperm(len(dataset.paths), generator=torch.Generator().manual_seed(seed))
        held_out = int(len(rows) * validation_share)
        validation_rows, training_rows = rows[:held_out], rows[held_out:]
    else:
        training_rows, validation_rows = torch.arange(training), torch.arange(training, len(dataset.paths))
    known = {dataset.digests[row] for row in training_rows.tolist()}
    no_copy = [dataset.digests[row] not in known for row in validation_rows.tolist()]
    return Split(training_rows, validation_rows[no_copy])


def describe_dataset(dataset: ImageDataset, split: Split) -> list[str]:
    """Return lines that count the images of each class, and warnings about them."""
    labels = dataset.labels
    counts = Counter(dataset.targets.tolist())
    by_class = ", ".join(f"{label} {counts[i]}" for i, label in enumerate(labels[:MAX_LABELS_SHOWN]))
    more = ", …" if len(labels) > MAX_LABELS_SHOWN else ""
    lines = [
        f"{len(dataset.paths)} images in {len(labels)} classes: {by_class}{more}",
        f"{len(split.training)} images train, {len(split.validation)} are held out",
    ]
    if few := [label for i, label in enumerate(labels) if counts[i] < MIN_IMAGES_PER_CLASS]:
        shortage = f"fewer than {MIN_IMAGES_PER_CLASS} images of {', '.join(few)}"
        lines.append(f"warning: {shortage}: the model will recognize these classes poorly")
    if max(counts.values()) > MAX_IMBALANCE * min(counts.values()):
        lines.append("warning: class sizes differ much; the loss weights rare classes more, but add images of them")
    if dropped := len(dataset.paths) - len(split.training) - len(split.validation):
        lines.append(f"warning: {dropped} held-out images are copies of training images and were left out")
    return lines + _warn_of_copies(dataset)


def warn_of_leaks(test: Path, dataset: ImageDataset) -> list[str]:
    """Warn of test images that are copies of training or validation images: they inflate the test accuracy."""
    known = {*dataset.digests}
    copies = [path for path, _ in list_images(test, dataset.labels)[0] if sha256(path) in known]
    if not copies:
        return []
    return [f"warning: {len(copies)} test images are copies of other images in DATA, for example {copies[0]}"]


def _warn_of_copies(dataset: ImageDataset) -> list[str]:
    """Warn of files with equal content: one class counts them twice, two classes contradict each other."""
    rows_by_digest: dict[str, list[int]] = {}
    for row, digest in enumerate(dataset.digests):
        rows_by_digest.setdefault(digest, []).append(row)
    copies = [rows for rows in rows_by_digest.values() if len(rows) > 1]
    contradictions = [rows for rows in copies if len({int(dataset.targets[row]) for row in rows}) > 1]
    copied = sum(map(len, copies)) - len(copies)
    problems = ((copied, "copies of others", copies), (len(contradictions), "in more than one class", contradictions))
    return [
        f"warning: {count} images are {problem}, for example {' and '.join(str(dataset.paths[i]) for i in rows[0][:2])}"
        for count, problem, rows in problems
        if rows
    ]
