"""Write an int8 calibration into the card of weights, and measure what int8 changes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from serve_app.config import EngineConfig, LimitsConfig, WeightsConfig
from serve_app.errors import DatasetError, ServiceError
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.network import fold
from serve_app.inference.runtimes.int8 import METHOD, calibrate
from serve_app.inference.runtimes.onnx_graph import to_onnx
from serve_app.inference.weights import load_weights, republish, sha256
from serve_app.messages import ClassifyRequest, ClassifyResult
from serve_app.model_card import ImageTransform, Int8Calibration, Int8Cost, ModelCard
from serve_app.preprocessing.formats import SUFFIXES
from serve_app.preprocessing.transform import preprocess

BATCH = 16
MAX_PIXELS = LimitsConfig().max_pixels


def quantize(
    spec: WeightsConfig, root: Path, out: Path, count: int, held_out: int, test: Path | None = None, seed: int = 0
) -> tuple[WeightsConfig, Int8Cost]:
    """Calibrate weights for int8, measure the difference on other images, and write weights and card.

    Args:
        spec: The weights.
        root: Folder of images to calibrate on.
        out: Folder for the weights, unchanged, and their new card; may be the weights' own.
        count: Number of images to calibrate on.
        held_out: Maximum number of images to measure on.
        test: Folder of images to measure on; by default the rest of ``root``.
        seed: Seed of the random choice of images.

    Returns:
        The weights written, and what int8 costs.

    Raises:
        DatasetError: There are too few images, or one is broken; the message names it.
        WeightsError: The weights cannot be loaded.
        EngineError: ONNX Runtime is not installed.
    """
    images = _shuffled(root, seed)
    calibrating = images[:count]
    measured = (_shuffled(test, seed) if test else images[count:])[:held_out]
    if not measured:
        raise DatasetError(
            f"{root}: {len(calibrating)} of its {len(images)} images calibrate and none is left to measure on; "
            "add images, use a smaller --count, or --test"
        )
    arrays, card = load_weights(spec)
    ranges = calibrate(to_onnx(fold(arrays), card.transform), _crops(calibrating, card.transform, "calibrate"))
    calibration = Int8Calibration(
        method=METHOD, images=len(calibrating), fingerprint=fingerprint(calibrating, root), ranges=ranges
    )
    calibrated = card.model_copy(update={"int8": calibration})
    cost = measure(spec, calibrated, measured, class_ids(measured, test or root, card))
    complete = calibration.model_copy(update={"cost": cost})
    return republish(spec, card.model_copy(update={"int8": complete}), out), cost


def measure(spec: WeightsConfig, card: ModelCard, files: Sequence[Path], truth: Sequence[int] | None) -> Int8Cost:
    """Compare float32 and int8 scores on image files, whose true class ids may be known."""
    exact = ResNetEngine(load_weights(spec)[0], card, EngineConfig(runtime="onnxruntime", precision="fp32"))
    int8 = ResNetEngine(load_weights(spec)[0], card, EngineConfig(precision="int8"))
    every = len(card.labels)
    pairs: list[tuple[ClassifyResult, ClassifyResult]] = []
    for crops in _crops(files, card.transform, "measure"):
        items = [ClassifyRequest(pixels, top_k=every) for pixels in crops]
        pairs += zip(exact.classify(items), int8.classify(items), strict=True)
    changes = [float(np.abs(_by_class(a) - _by_class(b)).max()) for a, b in pairs]
    best = np.array([(a.class_ids[0], b.class_ids[0]) for a, b in pairs])
    shares = None if truth is None else (best == np.array(truth)[:, None]).mean(0).tolist()
    top1_fp32, top1 = (None, None) if shares is None else (round(share, 4) for share in shares)
    return Int8Cost(
        images=len(pairs),
        agreement=round(float((best[:, 0] == best[:, 1]).mean()), 4),
        mean_score_difference=round(float(np.mean(changes)), 5),
        largest_score_difference=round(max(changes), 5),
        top1=top1,
        top1_fp32=top1_fp32,
    )


def class_ids(files: Sequence[Path], root: Path, card: ModelCard) -> list[int] | None:
    """Return the class ids that the files' folders name; None if a folder is not named like a class."""
    ids = {label: i for i, label in enumerate(card.labels)}
    names = [path.relative_to(root).parts[0] for path in files]
    return [ids[name] for name in names] if set(names) <= ids.keys() else None


def fingerprint(files: Sequence[Path], root: Path) -> str:
    """Return a SHA-256 over relative paths and contents; the order of the files does not count."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()


def _shuffled(root: Path, seed: int) -> list[Path]:
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DatasetError(f"{root}: contains no images ({' '.join(sorted(SUFFIXES))})")
    random.Random(seed).shuffle(files)
    return files


def _crops(files: Sequence[Path], transform: ImageTransform, title: str) -> Iterator[np.ndarray]:
    with tqdm(total=len(files), desc=title, unit=" images") as bar:
        for start in range(0, len(files), BATCH):
            part = files[start : start + BATCH]
            yield np.stack([_crop(path, transform) for path in part])
            bar.update(len(part))


def _crop(path: Path, transform: ImageTransform) -> np.ndarray:
    try:
        return preprocess(path.read_bytes(), transform, MAX_PIXELS).pixels
    except ServiceError as error:
        raise DatasetError(f"{path}: {error}") from error


def _by_class(answer: ClassifyResult) -> np.ndarray:
    scores = np.empty(len(answer.scores))
    scores[list(answer.class_ids)] = answer.scores
    return scores
