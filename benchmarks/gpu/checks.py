"""Part 1: compare the GPU's results with eager torchvision, for all batch sizes and from several threads."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import torch
from torchvision.models import ResNet

from benchmarks.gpu.common import Journal, Scale, gpu_engine, images, models, normalized, random_model, wait
from serve_app.config import EngineConfig, WeightsConfig
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.runtimes.cuda.runtime import FUSION_LEVELS, CudaRuntime, cudnn_without_tf32
from serve_app.inference.runtimes.folding import fold
from serve_app.inference.weights import load_weights
from serve_app.messages import ClassifyRequest, ClassifyResult, Explain
from serve_app.model_card import ModelCard

PRECISIONS = ("fp16", "fp32", "bf16")
LARGEST_DIFFERENCE = {"fp32": 2e-3, "fp16": 0.03, "bf16": 0.2}  # of a score

HALF = torch.float16
MIXED_UP = 0.05  # difference of a score that another image causes, and no kernel for another batch size


def run(journal: Journal, scale: Scale) -> None:
    """Run all checks."""
    journal.section("checks/eager-on-cpu", lambda: _eager_on_cpu(scale))
    for weights in models(scale):
        for precision in PRECISIONS:
            journal.section(f"checks/{weights}/{precision}", lambda w=weights, p=precision: _agreement(scale, w, p))
    journal.section("checks/engine", lambda: _engine(scale))
    journal.section("checks/uninitialized-memory", lambda: _poisoned(scale))
    journal.section("checks/workers", lambda: _stress(scale, journal))


def _eager_on_cpu(scale: Scale) -> dict[str, Any]:
    """Compare the reference itself: eager float32 on the GPU against eager float32 on the CPU."""
    model, card = random_model(scale)
    pixels = images(scale.pick(8, 2), scale.crop_px)
    cpu = torch.device("cpu")
    with torch.inference_mode():
        on_cpu = model(normalized(pixels, card.transform.mean, card.transform.std, cpu)).softmax(1)
    found = _reference(model, card, pixels, scale)
    return {"largest_difference": float(np.abs(found - on_cpu.numpy()).max())}


def _agreement(scale: Scale, weights: str, precision: str) -> dict[str, Any]:
    """Compare top-1, scores and heat maps with eager float32, and batches with single images."""
    model, card = models(scale)[weights]()
    pixels = images(scale.pick(300, 6), card.transform.crop_px)
    expected = _reference(model, card, pixels, scale)
    started = time.monotonic()
    engine = gpu_engine(model, card, precision, scale, benchmark=False)
    sizes = scale.sizes if precision == "fp16" else scale.pick([1, 8, 64, 256], scale.sizes)
    engine.record(sizes)
    warmed_s = time.monotonic() - started
    batch = [ClassifyRequest(each, len(card.labels), "top") for each in pixels]
    answers = engine(batch)
    found = _scores(answers, len(card.labels))
    singles = _scores([engine([item])[0] for item in batch[: scale.pick(64, 3)]], len(card.labels))
    by_size = {}
    for size in sizes:
        part = _scores(engine(batch[:size]), len(card.labels))
        by_size[size] = float(np.abs(part - expected[:size]).max())
    maps = [answer.activation_map for answer in answers if answer.activation_map]
    margins = np.sort(expected, 1)[:, -1] - np.sort(expected, 1)[:, -2]
    wrong = found.argmax(1) != expected.argmax(1)
    largest = float(np.abs(found - expected).max())
    return {
        "images": len(pixels),
        "ok": bool(np.isfinite(found).all() and largest < LARGEST_DIFFERENCE[precision]),
        "top1_agreement": float(1 - wrong.mean()),
        "largest_margin_of_a_changed_top1": float(margins[wrong].max(initial=0)),
        "largest_score_difference": largest,
        "mean_over_images_of_the_largest": float(
            np.abs(found - expected)[range(len(found)), expected.argmax(1)].mean()
        ),
        "largest_difference_by_batch_size": by_size,
        "batch_against_singles": float(np.abs(found[: len(singles)] - singles).max()),
        "maps": len(maps),
        "maps_add_up_within": max(abs(float(m.values.mean()) + m.bias - m.logit) for m in maps),
        "runtime": {"fused": engine.runtime.fused, "warm_up_s": round(warmed_s, 1)},
    }


def _engine(scale: Scale) -> dict[str, Any]:
    """Do what a deployment does: select the runtime by `auto`, warm up, classify."""
    arrays, card = load_weights(WeightsConfig(source="demo"))
    engine = ResNetEngine(arrays, card, EngineConfig(runtime=scale.pick("auto", "torch")))
    engine.warm_up(scale.sizes[-1])
    side = card.transform.crop_px
    answers = engine.classify([ClassifyRequest(each, 3, "top") for each in images(scale.sizes[-1], side)])
    return {"runtime": engine.runtime, "workers": engine.workers, "answers": len(answers)}


def _poisoned(scale: Scale) -> dict[str, Any]:
    """Fill free GPU memory with NaN: the features stay finite if no kernel reads memory before it is written."""
    model, card = random_model(scale)
    fold(model)
    found: dict[str, Any] = {}
    for fused in FUSION_LEVELS[scale.pick(0, -1) :]:
        for size in scale.sizes[:: scale.pick(2, 1)]:
            name = f"fused {'+'.join(fused) or 'nothing'}, batch {size}"
            try:
                found[name] = _finite(CudaRuntime(model, card.transform, HALF, scale.device, fused), size, scale)
            except RuntimeError as error:  # this GPU lacks the kernel, and the engine uses others
                found[name] = str(error)[:200]
    return {"ok": False not in found.values(), "finite": found}


@torch.inference_mode()
def _finite(runtime: CudaRuntime, size: int, scale: Scale) -> bool:
    pixels = torch.from_numpy(images(size, scale.crop_px)).to(scale.device)
    with cudnn_without_tf32():
        runtime.forward(pixels)  # the allocator keeps its memory, and the next pass gets it
        _fill_free_memory(scale)
        return bool(runtime.forward(pixels).isfinite().all())


def _fill_free_memory(scale: Scale) -> None:
    """Write NaN to the memory that the allocator hands out next."""
    if scale.smoke:
        return
    free = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    kept: list[torch.Tensor] = []
    for size in (2**28, 2**26, 2**24, 2**22, 2**20, 2**16):
        while free > size and len(kept) < 4000:
            before = torch.cuda.memory_reserved()
            block = torch.full((size // 2,), float("nan"), dtype=torch.float16, device=scale.device)
            if torch.cuda.memory_reserved() > before:  # no free block of that size is left
                break
            kept.append(block)
            free -= size
    wait(scale.device)


def _stress(scale: Scale, journal: Journal) -> dict[str, Any]:
    """Run batches of all sizes from two threads, check every result, and compare the memory before and after."""
    model, card = random_model(scale)
    engine = gpu_engine(model, card, scale.pick("fp16", "fp32"), scale, benchmark=False)
    engine.warm_up(scale.sizes[-1])
    pixels = images(scale.pick(256, 8), scale.crop_px, seed=3)
    expected = engine([ClassifyRequest(each, 10, "top") for each in pixels])
    state = {"wrong": 0, "images": 0, "largest": 0.0, "batches": 0}
    lock = threading.Lock()
    each = scale.pick(500, 10)
    ends = time.monotonic() + min(60.0, journal.left_s() / 2)

    def work(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(each):
            if time.monotonic() > ends:
                return
            size = choose.choice([1, 2, 3, choose.randint(1, 16), choose.randint(1, int(scale.sizes[-1] * 1.2))])
            places = [choose.randrange(len(pixels)) for _ in range(size)]
            explain: list[Explain] = [choose.choice([None, "top"]) for _ in places]
            given = [ClassifyRequest(pixels[i], 10, e) for i, e in zip(places, explain, strict=True)]
            wrong, largest = _compare(engine(given), [expected[i] for i in places], explain)
            with lock:
                state["wrong"] += wrong
                state["images"] += size
                state["batches"] += 1
                state["largest"] = max(state["largest"], largest)

    memory = [_memory()]
    for _ in range(2):  # the first round allocates what each thread allocates once
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(work, (1, 2)))
        memory.append(_memory())
    return {"ok": state["wrong"] == 0, **state, "memory_before_between_after": memory}


def _compare(
    found: list[ClassifyResult], expected: list[ClassifyResult], explains: Sequence[Explain]
) -> tuple[int, float]:
    """Count the results that belong to another image, and return the largest difference of a best score."""
    wrong, largest = 0, 0.0
    for one, other, explain in zip(found, expected, explains, strict=True):
        difference = abs(one.scores[0] - other.scores[0])
        changed = one.class_ids[0] != other.class_ids[0] and other.margin > MIXED_UP
        mapped = (one.activation_map is not None) == (explain is not None)
        if one.activation_map and other.activation_map and one.class_ids[0] == other.class_ids[0]:
            mapped &= bool(np.abs(one.activation_map.values - other.activation_map.values).max() < 1.0)
        wrong += changed or difference > MIXED_UP or not mapped
        largest = max(largest, difference)
    return wrong, largest


def _memory() -> dict[str, int]:
    host = psutil.Process().memory_info().rss // 2**20
    if not torch.cuda.is_available():
        return {"host_mib": host}
    torch.cuda.synchronize()
    return {
        "host_mib": host,
        "gpu_allocated_bytes": torch.cuda.memory_allocated(),
        "gpu_reserved_mib": torch.cuda.memory_reserved() // 2**20,
    }


@torch.inference_mode()
def _reference(model: ResNet, card: ModelCard, pixels: np.ndarray, scale: Scale) -> np.ndarray:
    """All scores by plain torchvision: eager, float32, no TF32."""
    model.to(scale.device)
    with cudnn_without_tf32():
        given = normalized(pixels, card.transform.mean, card.transform.std, scale.device)
        scores = torch.cat([(model(part) / card.temperature).softmax(1) for part in given.split(64)]).cpu().numpy()
    model.cpu()
    return np.asarray(scores)


def _scores(answers: Sequence[ClassifyResult], classes: int) -> np.ndarray:
    found = np.full((len(answers), classes), np.nan, np.float32)
    for row, answer in zip(found, answers, strict=True):
        row[[*answer.class_ids]] = answer.scores
    return found
