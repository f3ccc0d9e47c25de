"""Fit a temperature and an abstention threshold on held-out images, and write both into the weights' card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from serve_app.classification_metrics import DIGITS, expected_calibration_error, reliability_diagram, wilson_lower_bound
from serve_app.config import WeightsConfig
from serve_app.inference.weights import load_weights, republish
from serve_app.model_card import Calibration
from serve_app.training.data import fingerprint
from serve_app.training.predict import predict

PRECISION = 0.95
MAX_SURE_SHARE = 0.95  # the threshold rejects at least 5 % of the held-out images
WILSON_Z = 1.645  # one-sided 95 % confidence
MIN_SCORE = 1e-30  # replaces scores of 0, which have no logarithm
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.2, 10


def calibrate(
    spec: WeightsConfig, files: Sequence[tuple[Path, int]], precision: float, out: Path
) -> tuple[WeightsConfig, Calibration]:
    """Fit temperature and threshold on held-out images and write the weights with a new card.

    ``precision`` is the target accuracy of the answers above the threshold; ``out`` may be the weights' own folder.
    """
    arrays, card = load_weights(spec)
    predictions = predict(arrays, card.model_copy(update={"calibration": None}), files)
    temperature = round(fit_temperature(predictions.scores, predictions.targets), 4)
    scores = apply_temperature(predictions.scores, temperature)
    confidence, correct = scores.max(1), scores.argmax(1) == predictions.targets

    def ece(confidence: np.ndarray) -> float:
        return round(expected_calibration_error(reliability_diagram(confidence, correct)), DIGITS)

    calibration = Calibration(
        temperature=temperature,
        abstain_below=choose_threshold(confidence, correct, precision),
        precision=precision,
        images=len(files),
        fingerprint=fingerprint(files, card.labels),
        ece=ece(confidence),
        ece_before=ece(predictions.scores.max(1)),
    )
    return republish(spec, card.model_copy(update={"calibration": calibration}), out), calibration


def fit_temperature(scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature that minimizes the cross-entropy of the true classes.

    Scores are (N, C), at temperature 1; their logarithms serve as logits, because softmax ignores a constant. Targets
    are true class ids, (N,). Source: temperature scaling, Guo et al. (2017), section 4.2.
    """
    logits = torch.from_numpy(np.log(np.maximum(scores, MIN_SCORE))).double()
    truth = torch.from_numpy(targets)
    log_inverse = torch.zeros((), dtype=torch.float64, requires_grad=True)  # -log T keeps T positive
    optimizer = torch.optim.LBFGS([log_inverse], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(logits * log_inverse.exp(), truth)
        value.backward()
        return value

    optimizer.step(loss)
    # Without a mistake in the images the optimum is 0, which would make every score 1.
    return float(np.clip(np.exp(-log_inverse.item()), MIN_TEMPERATURE, MAX_TEMPERATURE))


def apply_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Return the scores, (N, C), that a temperature makes of scores at temperature 1."""
    powers = np.maximum(scores, MIN_SCORE).astype(np.float64) ** (1 / temperature)
    tempered: np.ndarray = powers / powers.sum(1, keepdims=True)
    return tempered


def choose_threshold(confidence: np.ndarray, correct: np.ndarray, precision: float) -> float | None:
    """Choose the lowest confidence above which answers reach the target precision; None if none does.

    The precision counts as reached if Wilson's lower bound reaches it, that is with 95 % confidence. The threshold is
    also at least the 5 % quantile of the confidence: a model that is right about all of its own classes still needs a
    threshold for images of other classes. ``confidence`` has the best score of each held-out image, (N,); ``correct``
    says whether that class was the true one.
    """
    order = np.argsort(-confidence, kind="stable")
    kept, hits = np.arange(1, len(order) + 1), np.cumsum(correct[order])
    distinct = np.append(np.diff(confidence[order]) < 0, True)  # a threshold cannot separate equal scores
    reached = np.flatnonzero((wilson_lower_bound(hits, kept, WILSON_Z) >= precision) & distinct)
    if not len(reached):
        return None
    threshold = max(float(confidence[order[reached[-1]]]), float(np.quantile(confidence, 1 - MAX_SURE_SHARE)))
    return int(threshold * 1e4) / 1e4  # rounded down, so that every image counted above the threshold stays there
