"""Measure weights on labeled images, through the serving code: metrics and plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.classification_metrics import DIGITS, in_top_k, summarize
from serve_app.config import WeightsConfig
from serve_app.files import atomic_write
from serve_app.inference.weights import load_weights, republish
from serve_app.model_card import ModelCard
from serve_app.training.data import LabeledFiles, fingerprint, list_images
from serve_app.training.plots import plot_confusion, plot_mistakes, plot_reliability
from serve_app.training.predict import Predictions, predict

MAX_MISTAKES = 24
LONG_FIELDS = ("reliability", "confusion", "mistakes")  # in evaluation.json, but neither printed nor in a card


def evaluate(spec: WeightsConfig, data: Path | LabeledFiles) -> tuple[dict[str, Any], Predictions, ModelCard]:
    """Classify labeled images (listed, or as list_images reads them) as the service would, and compute the metrics.

    Returns:
        The metrics (see classification_metrics.summarize; also the data's ``fingerprint``, the threshold in
        ``abstain`` and the worst ``mistakes``), the scores of each image, and the card.

    Raises:
        DatasetError: A class is unknown to the model, or an image is broken; the message names it.
        WeightsError: The weights cannot be loaded.
    """
    arrays, card = load_weights(spec)
    files = list_images(data, card.labels)[0] if isinstance(data, Path) else data
    predictions, labels = predict(arrays, card, files), card.labels
    scores, targets = predictions.scores, predictions.targets
    confidence = scores.max(1)
    sure = confidence >= card.abstain_below
    metrics = summarize(targets, scores.argmax(1), confidence, in_top_k(scores, targets, 5), sure, labels)
    metrics["abstain"] = {"below": card.abstain_below, **metrics["abstain"]}
    metrics |= {"fingerprint": fingerprint(files, labels), "mistakes": worst_mistakes(predictions, labels)}
    return metrics, predictions, card


def worst_mistakes(predictions: Predictions, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the wrong predictions with the highest scores, highest first."""
    best, confidence = predictions.scores.argmax(1), predictions.scores.max(1)
    wrong = np.flatnonzero(best != predictions.targets)
    return [
        {
            "path": str(predictions.paths[i]),
            "label": labels[predictions.targets[i]],
            "predicted": labels[best[i]],
            "score": round(float(confidence[i]), DIGITS),
        }
        for i in wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_MISTAKES]
    ]


def write_evaluation(metrics: dict[str, Any], card: ModelCard, out: Path) -> None:
    """Write ``evaluation.json`` and the plots into a folder, which is created if it is missing."""
    out.mkdir(parents=True, exist_ok=True)
    complete = {"model": card.ref.model_dump(), **metrics}
    with atomic_write(out / "evaluation.json") as unfinished:
        unfinished.write_text(json.dumps(complete, indent=2) + "\n")
    plot_confusion(metrics["confusion"], card.labels, out / "confusion.png")
    plot_reliability(metrics["reliability"], metrics["ece"], out / "reliability.png")
    plot_mistakes(metrics["mistakes"], out / "mistakes.png")


def record_metrics(spec: WeightsConfig, card: ModelCard, name: str, metrics: dict[str, Any]) -> None:
    """Write the short metrics into the card of local weights, under ``metrics.<name>``."""
    recorded = {**card.metrics, name: short_metrics(metrics)}
    republish(spec, card.model_copy(update={"metrics": recorded}), Path(spec.source).parent)


def short_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics without the long fields."""
    return {key: value for key, value in metrics.items() if key not in LONG_FIELDS}
