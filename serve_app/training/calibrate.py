"""Weights + held-out images -> the same weights with honest scores: a temperature and a threshold in their card.

``python -m serve_app.training.calibrate WEIGHTS DATA OUT`` leaves the weights file in OUT, byte for byte, and
its card. DATA is a folder or CSV of labeled images that trained nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from serve_app.config import WeightsConfig
from serve_app.errors import ServiceError
from serve_app.inference.weights import load_model, republish, spec_of
from serve_app.model_card import Calibration
from serve_app.training.data import fingerprint, list_images
from serve_app.training.metrics import ece, reliability
from serve_app.training.predict import predict

PRECISION = 0.95
KEPT = 0.95  # of the held-out images are to stay sure, where precision alone would let all be
CAUTION = 1.645  # standard errors that precision keeps from its target: reached in 95 of 100 samples of that size
LEAST = 1e-30  # a score of 0 has no logarithm


def calibrate(
    spec: WeightsConfig, files: Sequence[tuple[Path, int]], precision: float, out: Path
) -> tuple[WeightsConfig, Calibration]:
    """Fit temperature and threshold on images and publish the weights with them.

    Args:
        spec: The weights.
        files: Images that trained nothing, with their class ids.
        precision: Share of the sure answers that are to be right.
        out: Folder for the weights and their new card; may be the weights' own.

    Returns:
        The weights published, and what was found.
    """
    model, card = load_model(spec)
    found = predict(model, card.model_copy(update={"calibration": None}), files)
    temperature = round(fit_temperature(found.scores, found.targets), 4)
    calibrated = tempered(found.scores, temperature)
    right = calibrated.argmax(1) == found.targets
    made = Calibration(
        temperature=temperature,
        abstain_below=choose_threshold(calibrated.max(1), right, precision),
        precision=precision,
        images=len(files),
        fingerprint=fingerprint(files, card.labels),
        ece=round(ece(reliability(calibrated.max(1), right)), 4),
        ece_before=round(ece(reliability(found.scores.max(1), right)), 4),
    )
    return republish(spec, card.model_copy(update={"calibration": made}), out), made


def fit_temperature(scores: np.ndarray, targets: np.ndarray) -> float:
    """The temperature that makes the truth likeliest (Guo et al., 2017).

    Args:
        scores: float, (N, C), at temperature 1: their logarithms are logits as good as any.
        targets: int, (N,).
    """
    logits = torch.from_numpy(np.log(np.maximum(scores, LEAST))).double()
    truth = torch.from_numpy(targets)
    sharpness = torch.zeros((), dtype=torch.float64, requires_grad=True)  # -log T: the loss is convex in its exponent
    optimizer = torch.optim.LBFGS([sharpness], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(logits * sharpness.exp(), truth)
        value.backward()
        return value

    optimizer.step(loss)
    # Without a single mistake the best would be 0: certain for ever. Few images are no reason for that.
    return float(np.clip(np.exp(-sharpness.item()), 0.2, 10))


def tempered(scores: np.ndarray, temperature: float) -> np.ndarray:
    """What scores at temperature 1 become at another one."""
    powers = np.maximum(scores, LEAST).astype(np.float64) ** (1 / temperature)
    shares: np.ndarray = powers / powers.sum(1, keepdims=True)
    return shares


def choose_threshold(confidence: np.ndarray, right: np.ndarray, precision: float) -> float | None:
    """The least best score from which on answers are right often enough.

    Of those thresholds whose precision reaches the target with 95 % confidence (Wilson's lower
    bound) it is the lowest; but not lower than what 95 % of the images reach, so that a model
    that is right anyway still has a threshold for what it was never shown.

    Args:
        confidence: Best score of each held-out image.
        right: Whether it was right.
        precision: The target.

    Returns:
        None if no threshold reaches the target.
    """
    order = np.argsort(-confidence, kind="stable")
    kept, hits = np.arange(1, len(order) + 1), np.cumsum(right[order])
    share, slack = hits / kept, CAUTION**2 / kept
    bound = (share + slack / 2 - np.sqrt(slack * share * (1 - share) + slack**2 / 4)) / (1 + slack)
    ends = np.append(np.diff(confidence[order]) < 0, True)  # a threshold cannot part equal scores
    good = np.flatnonzero((bound >= precision) & ends)
    if not len(good):
        return None
    threshold = max(float(confidence[order[good[-1]]]), float(np.quantile(confidence, 1 - KEPT)))
    return int(threshold * 1e4) / 1e4  # down, so that what was counted as sure is


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="WEIGHTS", help="imagenet, demo or a .safetensors file")
    parser.add_argument("data", metavar="DATA", type=Path, help="labeled images that trained nothing: folder or CSV")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the weights and their new card")
    parser.add_argument("--precision", type=share, default=PRECISION, help="share of sure answers that are to be right")
    asked = parser.parse_args()
    try:
        spec = spec_of(asked.weights)
        files, _ = list_images(asked.data, load_model(spec)[1].labels)
        made, found = calibrate(spec, files, asked.precision, asked.out)
    except (ServiceError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(found.model_dump(), indent=2))
    if found.abstain_below is None:
        print(f"no threshold reaches a precision of {asked.precision} here: the default stays")
    print(f"serve it with: weights: {{source: {Path(made.source).resolve()}, sha256: {made.sha256}}}")


def share(text: str) -> float:
    """Read a command line's share, between 0 and 1."""
    if not 0 < (number := float(text)) < 1:
        raise argparse.ArgumentTypeError("has to be between 0 and 1")
    return number


if __name__ == "__main__":
    main()
