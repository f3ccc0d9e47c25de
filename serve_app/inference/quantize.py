"""Weights + images -> the same weights with an int8 calibration in their card, and what int8 costs.

``python -m serve_app.inference.quantize WEIGHTS IMAGES OUT`` leaves the weights file in OUT, byte for byte, and its
card. IMAGES is any folder of images like those that will be served. Some calibrate; how much int8
changes is measured on others, with top-1 if the folders they lie in are named like the model's classes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.errors import DatasetError, ServiceError
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.runtimes.folding import fold
from serve_app.inference.runtimes.int8 import METHOD, calibrate
from serve_app.inference.runtimes.onnx_graph import to_onnx
from serve_app.inference.weights import load_model, republish, spec_of
from serve_app.messages import ClassifyRequest, ClassifyResult
from serve_app.model_card import ImageTransform, Int8Calibration, Int8Cost, ModelCard
from serve_app.preprocessing.transform import preprocess
from serve_app.training.data import MAX_PIXELS, SUFFIXES

BATCH = 16
COUNT, HELD_OUT = 256, 1000


def quantize(
    spec: WeightsConfig,
    root: Path,
    out: Path,
    count: int = COUNT,
    held_out: int = HELD_OUT,
    test: Path | None = None,
    seed: int = 0,
) -> tuple[WeightsConfig, Int8Cost]:
    """Calibrate weights for int8, measure what that costs and publish both.

    Args:
        spec: The weights.
        root: Folder of images to calibrate on.
        out: Folder for the weights and their new card; may be the weights' own.
        count: Images to calibrate on.
        held_out: Most images to measure on.
        test: Folder of images to measure on; by default the rest of ``root``.
        seed: Of the choice of images.

    Returns:
        The weights published, and what int8 costs.

    Raises:
        DatasetError: Too few images, or a broken one, which is named.
        WeightsError: The weights cannot be had.
        EngineError: ONNX Runtime cannot be had.
    """
    found = _shuffled(root, seed)
    chosen = found[:count]
    measured = (_shuffled(test, seed) if test else found[count:])[:held_out]
    if not measured:
        raise DatasetError(
            f"{root}: of its {len(found)} images {len(chosen)} calibrate and none is left to measure on; "
            "add images, use --count or --test"
        )
    model, card = load_model(spec)
    ranges = calibrate(to_onnx(fold(model), card.transform), _crops(chosen, card.transform, "calibrate"))
    made = Int8Calibration(method=METHOD, images=len(chosen), fingerprint=fingerprint(chosen, root), ranges=ranges)
    cost = measure(spec, card.model_copy(update={"int8": made}), measured, class_ids(measured, test or root, card))
    complete = made.model_copy(update={"cost": cost})
    return republish(spec, card.model_copy(update={"int8": complete}), out), cost


def measure(spec: WeightsConfig, card: ModelCard, files: Sequence[Path], truth: Sequence[int] | None) -> Int8Cost:
    """Classify images in float32 and in int8, and compare.

    Args:
        spec: The weights.
        card: Their card with a calibration.
        files: Images.
        truth: Their class ids, if known.
    """
    exact = ResNetEngine(load_model(spec)[0], card, EngineConfig(runtime="onnxruntime", precision="fp32"))
    int8 = ResNetEngine(load_model(spec)[0], card, EngineConfig(precision="int8"))
    every = len(card.labels)
    pairs: list[tuple[ClassifyResult, ClassifyResult]] = []
    for crops in _crops(files, card.transform, "measure"):
        items = [ClassifyRequest(pixels, top_k=every) for pixels in crops]
        pairs += zip(exact.classify(items), int8.classify(items), strict=True)
    changes = [float(np.abs(_by_class(a) - _by_class(b)).max()) for a, b in pairs]
    best = np.array([(a.class_ids[0], b.class_ids[0]) for a, b in pairs])
    right = None if truth is None else (best == np.array(truth)[:, None]).mean(0)
    return Int8Cost(
        images=len(pairs),
        agreement=round(float((best[:, 0] == best[:, 1]).mean()), 4),
        mean_score_difference=round(float(np.mean(changes)), 5),
        largest_score_difference=round(max(changes), 5),
        top1=None if right is None else round(float(right[1]), 4),
        top1_fp32=None if right is None else round(float(right[0]), 4),
    )


def class_ids(files: Sequence[Path], root: Path, card: ModelCard) -> list[int] | None:
    """Class ids of an ImageFolder's files; none if a file does not lie in a folder named like a class."""
    ids = {label: i for i, label in enumerate(card.labels)}
    names = [path.relative_to(root).parts[0] for path in files]
    return [ids[name] for name in names] if set(names) <= ids.keys() else None


def fingerprint(files: Sequence[Path], root: Path) -> str:
    """SHA-256 over names and contents, whatever the order and wherever the folder."""
    digest = hashlib.sha256()
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _shuffled(root: Path, seed: int) -> list[Path]:
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DatasetError(f"{root}: holds no images ({' '.join(sorted(SUFFIXES))})")
    random.Random(seed).shuffle(files)
    return files


def _crops(files: Sequence[Path], transform: ImageTransform, what: str) -> Iterator[np.ndarray]:
    with tqdm(total=len(files), desc=what, unit=" images") as bar:
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="WEIGHTS", help="imagenet, demo or a .safetensors file")
    parser.add_argument("images", metavar="IMAGES", type=Path, help="folder of images like those to be served")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the weights and their new card")
    parser.add_argument("--count", type=_positive, default=COUNT, help="images to calibrate on")
    parser.add_argument("--held-out", type=_positive, default=HELD_OUT, help="most images to measure on")
    parser.add_argument("--test", type=Path, help="folder of images to measure on, instead of the rest of IMAGES")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images")
    asked = parser.parse_args()
    try:
        spec = spec_of(asked.weights)
        made, cost = quantize(spec, asked.images, asked.out, asked.count, asked.held_out, asked.test, asked.seed)
    except (ServiceError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{made.source}: its card has the int8 calibration now; measured on images held out:")
    print(json.dumps(cost.model_dump(exclude_none=True), indent=2))
    print("serve it with these args:")
    print(f"  weights: {{source: {Path(made.source).resolve()}, sha256: {made.sha256}}}")
    print("  engine: {precision: int8}")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("has to be 1 or more")
    return number


if __name__ == "__main__":
    main()
