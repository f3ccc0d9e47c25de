"""A folder or CSV -> images split in two, and what is wrong with them, before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from serve_app.errors import DatasetError
from serve_app.observability.feedback_store import labeled
from serve_app.training.data import Files, LabeledImages, content_hash, list_images

FEW = 10  # images of a class that teach it badly
UNEVEN = 10  # times more images in one class than in another


@dataclass(frozen=True)
class Listed:
    """The files of DATA.

    Attributes:
        files: With their class ids; those for training first.
        labels: Class names, in the order of the class ids.
        training: How many are for training, where DATA says so itself.
        test: Labeled images that neither train nor choose, if DATA has some.
    """

    files: Files
    labels: tuple[str, ...]
    training: int | None
    test: Path | None


@dataclass(frozen=True)
class Split:
    """Rows of the images: int64, (n,) each.

    Attributes:
        training: To learn from.
        validation: To watch progress, stop and calibrate; none has a copy among the others.
    """

    training: Tensor
    validation: Tensor


def find(data: Path, feedback: Path | None = None) -> Listed:
    """List DATA: folders of classes, or ``train``, ``val`` and ``test`` with those in them, or a CSV.

    Args:
        data: Where they are.
        feedback: A folder of feedback, whose images train, too.

    Raises:
        DatasetError: Neither; or a class is empty, or there is only one, or feedback has one that DATA lacks.
    """
    inner = {name: data / name for name in ("train", "val", "test") if (data / name).is_dir()}
    files, labels = list_images(inner.get("train", data))
    files += _said(feedback, labels) if feedback else []
    if len(labels) < 2:
        raise DatasetError(f"{data}: holds one class only, {labels[0]!r}; a classifier needs two")
    if "train" not in inner:
        return Listed(files, labels, None, None)
    chosen = list_images(inner["val"], labels)[0] if "val" in inner else []
    return Listed(files + chosen, labels, len(files) if chosen else None, inner.get("test"))


def _said(folder: Path, labels: Sequence[str]) -> Files:
    said = labeled(folder)
    if unknown := sorted({label for _, label in said} - {*labels}):
        raise DatasetError(f"{folder}: feedback names classes that DATA lacks: {', '.join(unknown)}")
    return [(path, labels.index(label)) for path, label in said]


def divide(images: LabeledImages, given: int | None, share: float, seed: int) -> Split:
    """Split images into those that train and those that watch.

    Args:
        images: All.
        given: So many from the front are for training; none leaves it to chance.
        share: For validation, if left to chance.
        seed: Of chance.
    """
    if given is None:
        rows = torch.randperm(len(images.paths), generator=torch.Generator().manual_seed(seed))
        held = int(len(rows) * share)
        validation, training = rows[:held], rows[held:]
    else:
        training, validation = torch.arange(given), torch.arange(given, len(images.paths))
    known = {images.digests[row] for row in training.tolist()}
    return Split(training, validation[[images.digests[row] not in known for row in validation.tolist()]])


def describe(images: LabeledImages, split: Split) -> list[str]:
    """Say what the data are, a line each, and what may be wrong with them."""
    counts = Counter(images.targets.tolist())
    by_class = ", ".join(f"{label} {counts[i]}" for i, label in enumerate(images.labels[:20]))
    more = ", …" if len(images.labels) > 20 else ""
    lines = [
        f"{len(images.paths)} images in {len(images.labels)} classes: {by_class}{more}",
        f"{len(split.training)} train, {len(split.validation)} are held out",
    ]
    if few := [images.labels[i] for i in range(len(images.labels)) if counts[i] < FEW]:
        lines.append(f"warning: fewer than {FEW} images of {', '.join(few)}: expect little of those")
    if max(counts.values()) > UNEVEN * min(counts.values()):
        lines.append(
            "warning: the classes are very uneven; rare ones count more in the loss, but more photos help more"
        )
    if lost := len(images.paths) - len(split.training) - len(split.validation):
        lines.append(f"warning: {lost} held-out images are copies of training images and were left out")
    return lines + _copies(images)


def leaks(test: Path, images: LabeledImages) -> list[str]:
    """Warn of test images that are copies of those that train or watch: accuracy on them proves nothing."""
    known = {*images.digests}
    found = [path for path, _ in list_images(test, images.labels)[0] if content_hash(path) in known]
    if not found:
        return []
    return [f"warning: {len(found)} test images are copies of others in DATA, for example {found[0]}"]


def _copies(images: LabeledImages) -> list[str]:
    """Warn of files with the same content: within a class they weigh double, in two classes they contradict."""
    places: dict[str, list[int]] = {}
    for row, digest in enumerate(images.digests):
        places.setdefault(digest, []).append(row)
    copies = [rows for rows in places.values() if len(rows) > 1]
    contrary = [rows for rows in copies if len({int(images.targets[row]) for row in rows}) > 1]
    lines = []
    if copies:
        lines.append(
            f"warning: {sum(map(len, copies)) - len(copies)} images are copies of others: {_names(images, copies[0])}"
        )
    if contrary:
        lines.append(f"warning: {len(contrary)} images lie in more than one class: {_names(images, contrary[0])}")
    return lines


def _names(images: LabeledImages, rows: Sequence[int]) -> str:
    return "for example " + " and ".join(str(images.paths[row]) for row in rows[:2])
