"""Cross-validated multinomial logistic regression on standardized embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from serve_app.heads.folds import NOT_MEASURED
from serve_app.heads.taught import fold as fold_in

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn: inverse strength of the L2 penalty
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.2, 10.0  # without a mistake the best temperature is 0, which makes every score 1
MIN_DEVIATION = 1e-3  # of a feature; a smaller one would be blown up by standardization


@dataclass(frozen=True, eq=False)
class Linear:
    """Weight, (C, 512), and bias, (C,), for raw embeddings."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """Return float32, (n, C)."""
        logits: np.ndarray = embeddings @ self.weight.T + self.bias
        return logits

    def cooled(self, temperature: float) -> Linear:
        """Return the layer whose logits are divided by a temperature."""
        return Linear((self.weight / temperature).astype(np.float32), (self.bias / temperature).astype(np.float32))


def fit_path(
    crops: np.ndarray, mirrored: np.ndarray, targets: np.ndarray, strengths: tuple[float, ...]
) -> Iterator[Linear]:
    """Yield a layer per strength, fitted on photos and their mirror images; each fit starts from the one before."""
    from sklearn.linear_model import LogisticRegression

    both = np.concatenate((crops, mirrored)).astype(np.float64)
    mean, scale = both.mean(0), np.maximum(both.std(0), MIN_DEVIATION)
    standardized, twice = (both - mean) / scale, np.concatenate((targets, targets))
    model = LogisticRegression(warm_start=True, max_iter=500, tol=1e-3)
    for strength in strengths:
        model.C = strength
        model.fit(standardized, twice)
        weight, bias = model.coef_, model.intercept_
        if len(weight) == 1:  # two classes: scikit-learn keeps the difference of their logits
            weight, bias = np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
        yield Linear(*fold_in(weight, bias, mean, scale, 1.0))


def out_of_fold(
    crops: np.ndarray, mirrored: np.ndarray, targets: np.ndarray, folds: np.ndarray, strengths: tuple[float, ...]
) -> np.ndarray:
    """Return the logits of each photo by fits that saw neither it nor a near duplicate.

    Returns:
        float32, (strengths, n, C); NaN for photos that are in no fold.
    """
    classes = int(targets.max()) + 1
    logits = np.full((len(strengths), len(targets), classes), np.nan, np.float32)
    for number in np.unique(folds[folds != NOT_MEASURED]):
        held = folds == number
        for row, layer in zip(logits, fit_path(crops[~held], mirrored[~held], targets[~held], strengths), strict=True):
            row[held] = layer.logits(crops[held])
    return logits


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature that minimizes the cross-entropy (Guo et al. 2017, section 4.2)."""
    from scipy.optimize import minimize_scalar

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    best = minimize_scalar(lambda log: cross_entropy(logits / np.exp(log), targets), bounds=bounds, method="bounded")
    return float(np.exp(best.x))


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean cross-entropy of true classes, in nats."""
    return float(-log_softmax(logits)[np.arange(len(targets)), targets].mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithms of the scores, (n, C)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    logs: np.ndarray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logs
