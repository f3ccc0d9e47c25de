"""Weights + labeled images -> how good they are, through the serving code: numbers and pictures.

``python -m serve_app.training.evaluate WEIGHTS DATA --out FOLDER`` prints the numbers and leaves all of them
(``evaluation.json``), confusion matrix, reliability diagram and worst mistakes as pictures in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.config import WeightsConfig
from serve_app.errors import ServiceError
from serve_app.inference.weights import load_model, republish, spec_of
from serve_app.model_card import ModelCard
from serve_app.training.data import Files, fingerprint, list_images
from serve_app.training.metrics import summarize
from serve_app.training.pictures import draw_confusion, draw_mistakes, draw_reliability
from serve_app.training.predict import Predictions, predict

MISTAKES = 24
LONG = ("reliability", "confusion", "mistakes")  # not printed, and not kept in a card


def evaluate(spec: WeightsConfig, data: Path | Files) -> tuple[dict[str, Any], Predictions, ModelCard]:
    """Classify labeled images as the service would.

    Args:
        spec: The weights.
        data: An ImageFolder or CSV of the model's labels, or files with their class ids.

    Returns:
        As metrics.summarize gives them, with the data's ``fingerprint`` and ``mistakes``, worst first; what was
        said of each image; the card.

    Raises:
        DatasetError: Not images of the model's classes, or a broken one, which is named.
        WeightsError: The weights cannot be had.
    """
    model, card = load_model(spec)
    files = list_images(data, card.labels)[0] if isinstance(data, Path) else data
    found, labels = predict(model, card, files), card.labels
    result = summarize(found.scores, found.targets, labels, card.abstain_below)
    extra = {"fingerprint": fingerprint(files, labels), "mistakes": mistakes(found, labels)}
    return result | extra, found, card


def mistakes(found: Predictions, labels: tuple[str, ...], most: int = MISTAKES) -> list[dict[str, Any]]:
    """The wrong answers that were given with most confidence."""
    best, confidence = found.scores.argmax(1), found.scores.max(1)
    wrong = np.flatnonzero(best != found.targets)
    return [
        {
            "path": str(found.paths[i]),
            "label": labels[found.targets[i]],
            "predicted": labels[best[i]],
            "score": round(float(confidence[i]), 4),
        }
        for i in wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    ]


def write(result: dict[str, Any], card: ModelCard, out: Path) -> None:
    """Leave ``evaluation.json`` and the pictures in a folder, which is made if it is missing."""
    out.mkdir(parents=True, exist_ok=True)
    whole = {"model": card.ref.model_dump(), **result}
    (out / "evaluation.json").write_text(json.dumps(whole, indent=2) + "\n")
    draw_confusion(result["confusion"], card.labels, out / "confusion.png")
    draw_reliability(result["reliability"], result["ece"], out / "reliability.png")
    draw_mistakes(result["mistakes"], out / "mistakes.png")


def short(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers that fit on a screen."""
    return {key: value for key, value in result.items() if key not in LONG}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="WEIGHTS", help="imagenet, demo or a .safetensors file")
    parser.add_argument("data", metavar="DATA", type=Path, help="labeled images: folder or CSV")
    parser.add_argument("--out", type=Path, help="folder for all numbers and the pictures")
    parser.add_argument("--record", metavar="NAME", help="write the numbers under this name into the file's card")
    asked = parser.parse_args()
    try:
        spec = spec_of(asked.weights)
        if asked.record and spec.sha256 is None:
            parser.error("--record needs a .safetensors file")
        result, _, card = evaluate(spec, asked.data)
        if asked.out:
            write(result, card, asked.out)
        if asked.record:
            metrics = {**card.metrics, asked.record: short(result)}
            republish(spec, card.model_copy(update={"metrics": metrics}), Path(spec.source).parent)
    except (ServiceError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(short(result), indent=2))


if __name__ == "__main__":
    main()
