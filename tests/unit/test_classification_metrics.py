"""Evaluation metrics: examples computed by hand, and straightforward references on random answers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from serve_app.classification_metrics import (
    expected_calibration_error,
    in_top_k,
    reliability_diagram,
    summarize,
    wilson_lower_bound,
)
from tests.support.paths import ROOT


def summarize_scores(scores: np.ndarray, targets: np.ndarray, labels: str, threshold: float) -> dict[str, Any]:
    confidence = scores.max(1)
    sure = confidence >= threshold
    return summarize(targets, scores.argmax(1), confidence, in_top_k(scores, targets, 5), sure, labels)


def random_answers(n: int = 300, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.dirichlet(np.full(classes, 0.3), n), random.integers(0, classes, n)


def test_a_small_example_by_hand() -> None:
    """Four images of three classes give the metrics computed on paper."""
    scores = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]])
    metrics = summarize_scores(scores, np.array([0, 1, 1, 2]), "abc", 0.55)
    assert (metrics["images"], metrics["top1"], metrics["top5"]) == (4, 0.5, 1.0)
    assert metrics["confusion"] == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert metrics["classes"]["a"] == {"images": 1, "precision": 0.3333, "recall": 1.0}
    assert metrics["classes"]["b"] == {"images": 2, "precision": 1.0, "recall": 0.5}
    assert metrics["classes"]["c"] == {"images": 1, "precision": None, "recall": 0.0}
    assert metrics["ece"] == pytest.approx((0.3 + 0.6 + 0.2 + 0.5) / 4)  # one image per bin
    assert metrics["abstain"] == {"share": 0.25, "precision": 0.6667}


def test_a_threshold_above_every_score_leaves_no_precision() -> None:
    scores, targets = random_answers()
    assert summarize_scores(scores, targets, "abcdefg", 1.1)["abstain"] == {"share": 1.0, "precision": None}


def test_metrics_equal_plain_loops() -> None:
    """On random answers, counting image by image gives the same shares."""
    scores, targets = random_answers()
    best = [int(row.argmax()) for row in scores]
    pairs = list(zip(targets.tolist(), best, strict=True))
    metrics = summarize_scores(scores, targets, "abcdefg", 0.6)
    assert metrics["top1"] == round(sum(truth == guess for truth, guess in pairs) / len(pairs), 4)
    in_five = sum(
        truth in sorted(range(7), key=lambda c: -row[c])[:5] for truth, row in zip(targets, scores, strict=True)
    )
    assert metrics["top5"] == round(in_five / len(pairs), 4)
    for i, label in enumerate("abcdefg"):
        row = metrics["classes"][label]
        assert row["images"] == sum(truth == i for truth, _ in pairs)
        assert row["recall"] == round(pairs.count((i, i)) / row["images"], 4)
        assert row["precision"] == round(pairs.count((i, i)) / best.count(i), 4)
        assert metrics["confusion"][i] == [pairs.count((i, j)) for j in range(7)]
    kept = [pair for pair, row in zip(pairs, scores, strict=True) if row.max() >= 0.6]
    assert metrics["abstain"]["share"] == round(1 - len(kept) / len(pairs), 4)
    assert metrics["abstain"]["precision"] == round(sum(truth == guess for truth, guess in kept) / len(kept), 4)


def test_the_diagram_covers_every_image_once() -> None:
    """Each image is in the bin that contains its confidence, 0 and 1 included; empty bins are left out."""
    confidence = np.array([0.0, 0.05, 0.1, 0.19, 0.95, 1.0])
    correct = np.array([False, True, True, False, True, True])
    assert reliability_diagram(confidence, correct, bins=10) == [
        {"from": 0.0, "to": 0.1, "images": 2, "confidence": pytest.approx(0.025), "accuracy": 0.5},
        {"from": 0.1, "to": 0.2, "images": 2, "confidence": pytest.approx(0.145), "accuracy": 0.5},
        {"from": 0.9, "to": 1.0, "images": 2, "confidence": pytest.approx(0.975), "accuracy": 1.0},
    ]


def test_the_calibration_error_weights_bins_by_images() -> None:
    """Three images with a gap of 0.1 and one with a gap of 0.5 give 0.2."""
    rows = [{"images": 3, "confidence": 0.9, "accuracy": 0.8}, {"images": 1, "confidence": 0.5, "accuracy": 1.0}]
    assert expected_calibration_error(rows) == pytest.approx(0.2)


def test_wilsons_bound() -> None:
    """8 of 10 at z = 1.96 has the textbook bound 0.490; every bound solves Wilson's equation."""
    assert wilson_lower_bound(np.array([8]), np.array([10]), 1.96)[0] == pytest.approx(0.4902, abs=1e-4)
    hits, trials = np.array([0, 1, 50, 95, 100]), np.array([5, 3, 100, 100, 100])
    bound = wilson_lower_bound(hits, trials, 1.645)
    assert hits / trials - bound == pytest.approx(1.645 * np.sqrt(bound * (1 - bound) / trials), abs=1e-9)
    assert (bound[1:] < (hits / trials)[1:]).all()


def test_the_metrics_need_no_other_module_of_the_service() -> None:
    """The page's container has neither torch nor pydantic for them."""
    program = (
        "import sys; sys.modules['torch'] = None; import serve_app.classification_metrics; "
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in ('serve_app', 'pydantic')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["serve_app", "serve_app.classification_metrics"]
