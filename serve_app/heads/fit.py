"""Examples -> a head and a report that tells the truth about it.

Everything that the report says about classes comes from fits that saw neither the photo nor a near duplicate of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from serve_app.classification_metrics import expected_calibration_error, reliability_diagram
from serve_app.errors import InvalidParameterError
from serve_app.heads import unknown
from serve_app.heads.advice import Measured, duplicates_across, most_confused, photos_to_add
from serve_app.heads.examples import Example
from serve_app.heads.folds import MIN_INDEPENDENT, NOT_MEASURED, assign_folds, group_duplicates, similarities
from serve_app.heads.intervals import accuracy_of
from serve_app.heads.label_errors import find_label_errors
from serve_app.heads.report import (
    Accuracy,
    ClassReport,
    HeadCalibration,
    HeadReport,
    LabelError,
    NearDuplicate,
    UnknownThreshold,
)
from serve_app.heads.scores import STRENGTHS, Linear, cross_entropy, fit_path, fit_temperature, log_softmax, out_of_fold
from serve_app.heads.taught import TaughtHead
from serve_app.model_card import ModelRef

WIDTH = 512  # numbers of an embedding
NEAR_DUPLICATE = 0.96  # cosine TODO
DEFAULT_STRENGTH = 3e-3  # where no class has enough photos to choose one
UNSURE_BELOW = 0.6  # scores are calibrated: a best score under it is right in fewer than 6 of 10 cases


class Fitted(NamedTuple):
    """What a fit returns."""

    head: TaughtHead
    report: HeadReport


class Photos(NamedTuple):
    """The examples as arrays."""

    labels: tuple[str, ...]  # C class names, by class id
    ids: tuple[str, ...]
    targets: np.ndarray  # int, (n,)
    crops: np.ndarray  # float32, (n, 512)
    mirrored: np.ndarray  # float32, (n, 512)
    references: np.ndarray  # float32, (n, 512): crops at length 1
    groups: np.ndarray  # int, (n,): near duplicates share one
    duplicates: tuple[NearDuplicate, ...]  # across classes

    @property
    def independent(self) -> np.ndarray:
        """Photos by class, int, (C,); near duplicates count as one."""
        return np.array([len(np.unique(self.groups[self.targets == c])) for c in range(len(self.labels))])


class Validated(NamedTuple):
    """What cross-validation found."""

    measured: Measured
    folds: int
    strength: float
    calibration: HeadCalibration


def fit(examples: Sequence[Example], backbone: ModelRef, *, seed: int = 0) -> Fitted:
    """Fit a head on examples and measure it on photos that it did not see.

    Args:
        examples: At least one; classes get their ids in the order of their names.
        backbone: The weights that made the embeddings.
        seed: Of the folds; the same examples and seed give the same head.

    Raises:
        InvalidParameterError: There is no example, or an embedding is not 512 finite numbers (422).
    """
    start_s = time.perf_counter()
    photos = _arrays(examples)
    validated = _validate(photos, seed) if len(photos.labels) > 1 else None
    temperature = validated.calibration.temperature if validated else 1.0
    layer = _fit_layer(photos, validated.strength if validated else DEFAULT_STRENGTH).cooled(temperature)
    distances = unknown.distances_between(photos.references, photos.groups)
    max_distance = unknown.choose_threshold(distances, photos.groups)
    head = TaughtHead(
        labels=photos.labels,
        weight=layer.weight,
        bias=layer.bias,
        references=photos.references,
        reference_classes=photos.targets,
        reference_ids=photos.ids,
        max_distance=max_distance,
        abstain_below=UNSURE_BELOW if len(photos.labels) > 1 else 0.0,
        backbone=backbone,
    )
    report = _report(photos, validated, distances, max_distance)
    return Fitted(head, report.model_copy(update={"fit_s": round(time.perf_counter() - start_s, 3)}))


def _arrays(examples: Sequence[Example]) -> Photos:
    if not examples:
        raise InvalidParameterError("there is no photo to learn from; add at least one")
    for example in examples:
        for values in (example.embedding, example.mirrored):
            if values.shape != (WIDTH,) or not np.isfinite(values).all():
                raise InvalidParameterError(f"example {example.id}: its embedding is not {WIDTH} finite numbers")
    labels = tuple(sorted({example.class_name for example in examples}))
    class_ids = {label: class_id for class_id, label in enumerate(labels)}
    targets = np.array([class_ids[example.class_name] for example in examples])
    crops = np.array([example.embedding for example in examples], np.float32)
    mirrored = np.array([example.mirrored for example in examples], np.float32)
    ids = tuple(example.id for example in examples)
    references = unknown.unit(crops)
    alike = similarities(references, unknown.unit(mirrored))
    groups = group_duplicates(alike, [example.photo_sha256 for example in examples], NEAR_DUPLICATE)
    duplicates = duplicates_across(alike, targets, NEAR_DUPLICATE, ids, labels)
    return Photos(labels, ids, targets, crops, mirrored, references, groups, duplicates)


def _fit_layer(photos: Photos, strength: float) -> Linear:
    if len(photos.labels) == 1:  # its score is always 1; only the distance tells photos of it from others
        return Linear(np.zeros((1, WIDTH), np.float32), np.zeros(1, np.float32))
    return next(fit_path(photos.crops, photos.mirrored, photos.targets, (strength,)))


def _validate(photos: Photos, seed: int) -> Validated | None:
    """Choose strength and temperature by cross-validation; None if no class has enough photos."""
    folds = assign_folds(photos.targets, photos.groups, seed)
    rows = np.flatnonzero(folds != NOT_MEASURED)
    if not len(rows):
        return None
    targets = photos.targets[rows]
    logits = out_of_fold(photos.crops, photos.mirrored, photos.targets, folds, STRENGTHS)[:, rows]
    temperatures = [fit_temperature(each, targets) for each in logits]
    losses = [cross_entropy(each / t, targets) for each, t in zip(logits, temperatures, strict=True)]
    best = int(np.argmin(losses))
    scores = np.exp(log_softmax(logits[best] / temperatures[best]))
    raw = np.exp(log_softmax(logits[best]))
    correct = scores.argmax(1) == targets
    calibration = HeadCalibration(
        temperature=round(temperatures[best], 4), ece=_ece(scores, correct), ece_before=_ece(raw, correct)
    )
    return Validated(
        Measured(rows, targets, scores),
        len(np.unique(folds[rows])),
        STRENGTHS[best],
        calibration,
    )


def _ece(scores: np.ndarray, correct: np.ndarray) -> float:
    return round(expected_calibration_error(reliability_diagram(scores.max(1), correct)), 4)


def _report(photos: Photos, validated: Validated | None, distances: np.ndarray, max_distance: float) -> HeadReport:
    known = None
    if math.isfinite(max_distance):
        known = UnknownThreshold(
            max_distance=round(max_distance, 4), kept=round(float((distances <= max_distance).mean()), 4)
        )
    counts = np.bincount(photos.targets)
    classes = tuple(
        ClassReport(
            name=label,
            photos=int(counts[c]),
            accuracy=_class_accuracy(validated, c),
            note=_class_note(label, int(counts[c]), int(photos.independent[c]), len(photos.labels)),
        )
        for c, label in enumerate(photos.labels)
    )
    report = HeadReport(
        kind="one_class" if len(photos.labels) == 1 else "classes",
        photos=len(photos.ids),
        accuracy=None,
        classes=classes,
        near_duplicates=photos.duplicates,
        unknown=known,
        notes=_notes(photos, validated, known),
    )
    if validated is None:
        return report
    measured = validated.measured
    predicted = measured.scores.argmax(1)
    confusion = np.zeros((len(photos.labels),) * 2, int)
    np.add.at(confusion, (measured.targets, predicted), 1)
    return report.model_copy(
        update={
            "accuracy": accuracy_of(predicted == measured.targets, validated.folds),
            "confusion": tuple(map(tuple, confusion.tolist())),
            "most_confused": most_confused(confusion, photos.labels),
            "label_errors": tuple(
                LabelError(
                    example_id=photos.ids[measured.rows[suspect.row]],
                    class_name=photos.labels[measured.targets[suspect.row]],
                    suggested=photos.labels[suspect.suggested],
                    score=round(suspect.score, 4),
                )
                for suspect in find_label_errors(measured.scores, measured.targets)
            ),
            "photos_to_add": photos_to_add(photos.independent, measured, photos.labels, photos.ids),
            "calibration": validated.calibration,
            "strength": validated.strength,
        }
    )


def _class_accuracy(validated: Validated | None, class_id: int) -> Accuracy | None:
    if validated is None or not (of_class := validated.measured.targets == class_id).any():
        return None
    return accuracy_of(validated.measured.scores[of_class].argmax(1) == class_id, validated.folds)


def _class_note(label: str, photos: int, independent: int, classes: int) -> str | None:
    if classes == 1 or independent >= MIN_INDEPENDENT:
        return None
    if independent < photos:
        return (
            f"{label!r} has {photos} photos, but only {independent} different ones, too few to measure how well it is "
            f"told apart; add photos from other places and angles."
        )
    return (
        f"{photos} photos of {label!r} are too few to measure how well it is told apart: "
        f"it takes at least {MIN_INDEPENDENT}."
    )


def _notes(photos: Photos, validated: Validated | None, known: UnknownThreshold | None) -> tuple[str, ...]:
    notes = []
    if len(photos.labels) == 1:
        notes.append(
            f"There is only one class, so this head is an outlier detector: it tells photos like those of "
            f"{photos.labels[0]!r} from all others. Add a second class to tell two things apart."
        )
    elif validated is None:
        notes.append(
            f"No class has {MIN_INDEPENDENT} different photos, so neither the accuracy nor the strength of the "
            f"penalty could be measured; add photos."
        )
    if known is None:
        notes.append(
            f"Fewer than {unknown.MIN_PHOTOS} different photos set no threshold for 'none of these': every photo gets "
            f"one of the classes."
        )
    if repeated := len(photos.ids) - len(np.unique(photos.groups)):
        notes.append(f"{repeated} photos are near duplicates of others; they add little to what the head knows.")
    return tuple(notes)
