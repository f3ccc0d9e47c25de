"""A labelled folder + weights -> accuracy, through the serving code."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from serve_app.classifier import ResNetEngine
from serve_app.config import WeightsSpec
from serve_app.errors import ServiceError
from serve_app.preprocess import preprocess
from serve_app.schemas import ClassifyItem
from serve_app.training.data import MAX_PIXELS, list_images
from serve_app.weights import load_model, spec_of

BATCH = 64


def evaluate(root: Path, spec: WeightsSpec) -> dict[str, Any]:
    """Classify every image of an ImageFolder as the service would.

    Args:
        root: Folder with one sub-folder of images per class; names are the model's labels.
        spec: The weights.

    Returns:
        ``images``, ``top1`` and ``recall`` per class, as shares of 1.

    Raises:
        DatasetError: Not an ImageFolder of the model's classes.
        WeightsError: The weights cannot be had.
    """
    model, card = load_model(spec)
    engine = ResNetEngine(model, card)
    files, labels = list_images(root, card.labels)
    seen: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for part in _batches(tqdm(files, f"classify {root.name}", unit=" images"), BATCH):
        items = [ClassifyItem(preprocess(p.read_bytes(), card.transform, MAX_PIXELS).pixels, 1) for p, _ in part]
        for (_, target), answer in zip(part, engine.classify(items), strict=True):
            seen[labels[target]] += 1
            hits[labels[target]] += answer.class_ids[0] == target
    return {
        "images": len(files),
        "top1": round(hits.total() / len(files), 4),
        "recall": {label: round(hits[label] / count, 4) for label, count in seen.items()},
    }


def _batches(rows: Iterable[tuple[Path, int]], size: int) -> Iterator[list[tuple[Path, int]]]:
    remaining = iter(rows)
    while part := list(islice(remaining, size)):
        yield part


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with one sub-folder of images per class")
    parser.add_argument("weights", nargs="?", default="demo", help="imagenet, demo or a .safetensors file")
    parser.add_argument("--record", action="store_true", help="write the result into the model's card")
    options = parser.parse_args()
    path = Path(options.weights)
    try:
        result = evaluate(options.data, spec_of(options.weights))
    except (ServiceError, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result, indent=2))
    if options.record:
        card_path = path.with_suffix(".json")
        card = json.loads(card_path.read_text())
        card["metrics"][options.data.name] = result
        card_path.write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
