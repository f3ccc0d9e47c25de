"""Classify labeled files through the serving code, so that the scores are those of the API."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from serve_app.errors import DatasetError, ServiceError
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.network import Arrays
from serve_app.messages import ClassifyRequest
from serve_app.model_card import ModelCard
from serve_app.preprocessing.transform import preprocess
from serve_app.training.data import MAX_PIXELS

BATCH = 16


@dataclass(frozen=True)
class Predictions:
    """A model's scores for labeled images."""

    scores: np.ndarray  # float32, (N, C): by class id, as the API returns them
    targets: np.ndarray  # int64, (N,): true class ids
    paths: tuple[Path, ...]


def predict(arrays: Arrays, card: ModelCard, files: Sequence[tuple[Path, int]]) -> Predictions:
    """Classify files as the service does: same decoding, crop, runtime, head and temperature.

    The weights are as weights.load_weights returns them.

    Raises:
        DatasetError: An image is broken; the message names it.
    """
    engine, classes = ResNetEngine(arrays, card), len(card.labels)

    def item(path: Path) -> ClassifyRequest[np.ndarray]:
        try:
            return ClassifyRequest(preprocess(path.read_bytes(), card.transform, MAX_PIXELS).pixels, classes)
        except ServiceError as error:
            raise DatasetError(f"{path}: {error}") from error

    scores = np.zeros((len(files), classes), np.float32)
    with ThreadPoolExecutor() as pool, tqdm(total=len(files), desc="classify", unit=" images") as bar:
        for start in range(0, len(files), BATCH):
            part = files[start : start + BATCH]
            for row, answer in enumerate(engine.classify(list(pool.map(item, (path for path, _ in part)))), start):
                scores[row, list(answer.class_ids)] = answer.scores
            bar.update(len(part))
    return Predictions(scores, np.array([target for _, target in files]), tuple(path for path, _ in files))
