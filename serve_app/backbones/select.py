"""Builds the backbone that a config asks for; ``auto`` measures which is fastest on this very CPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from torchvision.models import ResNet

from serve_app.backbones.cpu import Backbone, MnnBackbone, OnnxRuntimeBackbone, TorchBackbone
from serve_app.backbones.folding import fold
from serve_app.backbones.graph import to_onnx
from serve_app.config import EngineSpec
from serve_app.errors import EngineError
from serve_app.schemas import ModelCard

log = logging.getLogger("serve_app")
TOLERANCE = 1e-3  # largest error of a feature, as a share of the largest feature
ROUNDS = 4
BATCHES = (1, 8)


def build(model: ResNet, card: ModelCard, spec: EngineSpec, threads: int) -> Backbone:
    """Build a backbone from a model, which is changed in place.

    Args:
        model: In eval mode, on the CPU.
        card: The model's transform.
        spec: Which runtime, which precision.
        threads: CPU threads that one batch may use.

    Raises:
        EngineError: It cannot be had here; the message is one sentence.
    """
    fold(model)
    graph = to_onnx(model, card.transform).SerializeToString()
    makers: dict[str, Callable[[], Backbone]] = {
        "torch": lambda: TorchBackbone(model, card.transform),
        "onnxruntime": lambda: OnnxRuntimeBackbone(graph, threads),
        "mnn": lambda: MnnBackbone(graph, threads),
    }
    if spec.runtime != "auto":
        try:
            return makers[spec.runtime]()
        except ImportError as error:
            raise EngineError(f"engine {spec.runtime}: not installed here ({error})") from error
    return _fastest(makers, card.transform.crop_px)


def _fastest(makers: dict[str, Callable[[], Backbone]], crop_px: int) -> Backbone:
    """Of those that can be had and agree with torch, the one that takes the least time."""
    samples = [np.random.default_rng(n).integers(0, 256, (n, crop_px, crop_px, 3), np.uint8) for n in BATCHES]
    reference = makers["torch"]()
    with torch.inference_mode():
        expected = [reference(sample) for sample in samples]
        found: dict[Backbone, float] = {}
        for name, make in makers.items():
            try:
                backbone = reference if name == "torch" else make()
            except ImportError as error:
                log.info("engine %s: not installed here (%s)", name, error)
                continue
            worst = max(
                float((backbone(sample) - wanted).abs().max() / wanted.abs().max())
                for sample, wanted in zip(samples, expected, strict=True)
            )
            if not worst < TOLERANCE:
                log.warning("engine %s: answers differ by %.1e and are not used", name, worst)
                continue
            found[backbone] = sum(_best_time(backbone, sample) / len(sample) for sample in samples)
    best = min(found, key=lambda backbone: found[backbone])
    log.info("engine %s: %s", best.name, {b.name: f"{s / len(BATCHES) * 1000:.1f} ms" for b, s in found.items()})
    return best


def _best_time(backbone: Backbone, sample: np.ndarray) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        backbone(sample)
        times.append(time.perf_counter() - start)
    return min(times)
