"""Measure a running service's accuracy on labeled images, and its agreement with plain torchvision.

``python benchmarks/served_accuracy.py DATA [--url …] [--weights demo]`` posts every image of DATA over HTTP. It
classifies the same files with torchvision's transforms and its unmodified ResNet-18, without the service's batching
and folding.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import httpx2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as tv
from tqdm import tqdm

from serve_app.inference.torch_model import load_model
from serve_app.inference.weights import spec_of
from serve_app.model_card import ImageTransform
from serve_app.training.data import list_images

PER_REQUEST = 64


def plain_transform(path: Path, transform: ImageTransform) -> torch.Tensor:
    """Return what torchvision's ImageClassification preset makes of a file: float32, (3, H, W)."""
    image = tv.resize(Image.open(path).convert("RGB"), [transform.resize_px], antialias=True)
    cropped = tv.center_crop(image, [transform.crop_px])
    return tv.normalize(tv.to_tensor(cropped), list(transform.mean), list(transform.std))


def served_scores(http: httpx2.Client, paths: list[Path], classes: int) -> np.ndarray:
    """Return the service's scores by class id: float64, (N, classes)."""
    files = [("images", (path.name, path.read_bytes())) for path in paths]
    results = http.post("/v1/classify", files=files, params={"top_k": classes}).raise_for_status().json()["results"]
    scores = np.zeros((len(paths), classes))
    for row, result in enumerate(results):
        for prediction in result["predictions"]:
            scores[row, prediction["class_id"]] = prediction["score"]
    return scores


def main() -> None:
    """Print images, both accuracies, agreement and largest score difference as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", type=Path, help="folder with a sub-folder of images per class, or CSV")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the API")
    parser.add_argument(
        "--weights", default="demo", help="weights that the service serves: a name or a .safetensors file"
    )
    options = parser.parse_args()
    model, card = load_model(spec_of(options.weights))
    files, labels = list_images(options.data, card.labels)
    served, plain = [], []
    with httpx2.Client(base_url=options.url, timeout=120) as http, torch.inference_mode():
        for first in tqdm(range(0, len(files), PER_REQUEST)):
            paths = [path for path, _ in files[first : first + PER_REQUEST]]
            served.append(served_scores(http, paths, len(labels)))
            batch = torch.stack([plain_transform(path, card.transform) for path in paths])
            plain.append((model(batch) / card.temperature).softmax(1).numpy())
    ours, theirs = np.concatenate(served), np.concatenate(plain)
    targets = np.array([target for _, target in files])
    result = {
        "images": len(files),
        "served_top1": float((ours.argmax(1) == targets).mean()),
        "torchvision_top1": float((theirs.argmax(1) == targets).mean()),
        "agreement": float((ours.argmax(1) == theirs.argmax(1)).mean()),
        "largest_score_difference": float(np.abs(ours - theirs).max()),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
