"""Judge a recipe by sources that were left out: accuracy by source and class, temperature, threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serve_app.classification_metrics import (
    DIGITS,
    expected_calibration_error,
    in_top_k,
    reliability_diagram,
    summarize,
)
from serve_app.errors import DatasetError
from serve_app.model_card import Calibration
from serve_app.training.calibrate import apply_temperature, fit_temperature
from serve_app.training.class_map import Photo, left_out
from serve_app.training.evaluate import short_metrics

SAME_SOURCE_PARTS = 8  # of the photos of classes with one source, a fold holds out one part


@dataclass(frozen=True)
class Fold:
    """Which photos one training does without, as rows: int64, (n,) each."""

    training: Tensor
    judged: Tensor  # photos of sources that were left out
    same_source: Tensor  # held-out photos of classes that have one source only, which says less
    unknown: Tensor  # photos of no class; none of their folders trains


@dataclass(frozen=True)
class Answers:
    """Scores at temperature 1 of photos that did not train."""

    scores: np.ndarray  # float32, (n, C)
    rows: np.ndarray  # int64, (n,): the photos


def make_folds(photos: Sequence[Photo], groups: Sequence[Sequence[str]], seed: int) -> list[Fold]:
    """Leave out each group of sources in turn; photos of no class are divided by folder.

    A class whose photos all come from one group has nothing to train on elsewhere, so its photos stay, except a part
    that is held out.

    Raises:
        DatasetError: A group has no photos of a class that others have too.
    """
    labels = np.array([photo.label for photo in photos])
    folders = sorted({photo.folder for photo in photos if not photo.label})
    fold_of_folder = {folder: i % max(len(groups), 1) for i, folder in enumerate(folders)}
    part = np.random.default_rng(seed).integers(SAME_SOURCE_PARTS, size=len(photos))
    judged_in = [np.array(left_out(photos, group)) for group in groups]
    for group, judged in zip(groups, judged_in, strict=True):
        if not judged.any():
            raise DatasetError(f"judge: {', '.join(group)} has no photos of a class that other sources have too")
    never_judged = (labels != "") & ~np.isin(labels, labels[np.any(judged_in, 0)]) if groups else labels != ""
    folds = []
    for i, judged in enumerate(judged_in):
        same_source = never_judged & (part == i)
        unknown = np.array([fold_of_folder.get(photo.folder) == i and not photo.label for photo in photos])
        training = ~(judged | same_source | unknown)
        folds.append(Fold(*(torch.from_numpy(np.flatnonzero(m)) for m in (training, judged, same_source, unknown))))
    return folds


def calibrate_on(
    judged: Sequence[Answers], unknown: Sequence[Answers], targets: np.ndarray, keep_right: float, fingerprint: str
) -> Calibration:
    """Fit the temperature on held-out photos, and the threshold that keeps a share of the right answers.

    Args:
        judged: Answers to photos that did not train. Those of left-out sources alone would make the scores too low,
            because the published weights have photos of these sources; those of the same source alone, too high.
        unknown: Answers to photos of no class.
        targets: int64, (N,): class ids of all photos.
        keep_right: Share of right answers at or above the threshold.
        fingerprint: Of the data.
    """
    scores, truth = _join(judged), targets[np.concatenate([a.rows for a in judged])]
    temperature = round(fit_temperature(scores, truth), 4)
    tempered = apply_temperature(scores, temperature)
    confidence, right = tempered.max(1), tempered.argmax(1) == truth
    threshold = int(float(np.quantile(confidence[right], 1 - keep_right)) * 1e4) / 1e4
    sure = confidence >= threshold
    strangers = _join(unknown)
    rejected = apply_temperature(strangers, temperature).max(1) < threshold
    return Calibration(
        temperature=temperature,
        abstain_below=threshold,
        precision=None,
        images=len(truth),
        fingerprint=fingerprint,
        ece=_ece(confidence, right),
        ece_before=_ece(scores.max(1), scores.argmax(1) == truth),
        right_kept=round(float(sure[right].mean()), DIGITS),
        unknown_images=len(rejected) or None,
        unknown_abstained=round(float(rejected.mean()), DIGITS) if len(rejected) else None,
    )


def measure(
    answers: Sequence[Answers], targets: np.ndarray, labels: Sequence[str], card: Calibration
) -> dict[str, Any]:
    """Return the short metrics of answers at the card's temperature; classes without photos are left out."""
    truth = targets[np.concatenate([a.rows for a in answers])]
    scores = apply_temperature(_join(answers), card.temperature)
    confidence, best = scores.max(1), scores.argmax(1)
    sure = confidence >= (card.abstain_below or 0)
    metrics = short_metrics(summarize(truth, best, confidence, in_top_k(scores, truth, 5), sure, labels))
    metrics["classes"] = {label: row for label, row in metrics["classes"].items() if row["images"]}
    kept = sure[best == truth]
    right_kept = round(float(kept.mean()), DIGITS) if len(kept) else None
    metrics["abstain"] |= {"below": card.abstain_below, "right_kept": right_kept}
    return metrics


def _join(answers: Sequence[Answers]) -> np.ndarray:
    return np.concatenate([a.scores for a in answers])


def _ece(confidence: np.ndarray, right: np.ndarray) -> float:
    return round(expected_calibration_error(reliability_diagram(confidence, right)), DIGITS)
