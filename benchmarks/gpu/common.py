"""Shared by the parts: models, images, timing, and the journal for results."""

from __future__ import annotations

import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models import ResNet, resnet18

from serve_app.config import WeightsConfig
from serve_app.inference.head import Head
from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner
from serve_app.inference.runtimes.cuda.runtime import CudaRuntime, build_cuda_runtime
from serve_app.inference.runtimes.folding import fold
from serve_app.inference.torch_model import load_model, to_arrays
from serve_app.messages import ClassifyRequest
from serve_app.model_card import ImageTransform, ModelCard
from tests.support.cuda_on_cpu import CpuStream

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIN_MEASUREMENT_MS = 20.0  # calls are repeated until they take as long together
LOGIT_SPREAD = 12.0  # of random weights, about that of a trained model
Section = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Scale:
    """Sizes of the measurements: full on a GPU, tiny in a smoke test on the CPU."""

    smoke: bool

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return CPU if self.smoke else torch.device("cuda")

    @property
    def sizes(self) -> list[int]:
        """Batch sizes to measure."""
        return [1, 2] if self.smoke else [2**n for n in range(9)]

    @property
    def rounds(self) -> int:
        """Number of interleaved measurements of each variant."""
        return 2 if self.smoke else 5

    @property
    def crop_px(self) -> int:
        """Side of the crops, for random weights."""
        return 64 if self.smoke else 224

    @property
    def classes(self) -> int:
        """Number of classes, for random weights."""
        return 12 if self.smoke else 1000

    def pick(self, full: Any, smoke: Any) -> Any:
        """Return the value for a full run or the one for a smoke test."""
        return smoke if self.smoke else full


class Journal:
    """A file of results, one line of JSON per section, so that a killed part keeps its finished sections."""

    def __init__(self, path: Path, ends: float) -> None:
        """Append to a file; no section starts after a time of ``time.monotonic``."""
        self._path, self._ends = path, ends

    def section(self, name: str, measure: Section, least_s: float = 5.0) -> None:
        """Run one section and write its results; an error becomes the section's result."""
        if self._ends - time.monotonic() < least_s:
            self._write(name, {"skipped": "no time was left"})
            return
        print(f"· {name}", flush=True)
        start = time.monotonic()
        try:
            found = dict(measure())
        except Exception as error:  # the other sections still run: GPU time is rare
            found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-3000:]}
            print(f"    {found['error'][:300]}", flush=True)
        self._write(name, {**found, "took_s": round(time.monotonic() - start, 1)})
        gc.collect()

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self._ends - time.monotonic()

    def _write(self, name: str, found: Mapping[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"section": name, **found}, default=str) + "\n")
        print(f"    {json.dumps(found, default=str)[:400]}", flush=True)


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the time of one call by the GPU's clock; calls are repeated until they can be measured."""
    times = 1
    while True:
        took = _together(run, times, device)
        if took >= MIN_MEASUREMENT_MS or device.type == "cpu":
            return took / times
        times = max(times + 1, min(times * 8, int(times * 1.3 * MIN_MEASUREMENT_MS / max(took, 1e-3))))


def interleaved(
    variants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each variant; variants take turns, so that drift affects all of them."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for name in names:
        variants[name]()  # warm
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(milliseconds(variants[name], device))
    return {name: spread(times) for name, times in found.items()}


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return median, least and most."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 4),
        "least": round(ordered[0], 4),
        "most": round(ordered[-1], 4),
    }


def wait(device: torch.device) -> None:
    """Block until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _together(run: Callable[[], object], times: int, device: torch.device) -> float:
    if device.type == "cpu":
        begun = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - begun) * 1000
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def images(n: int, side: int, seed: int = 0) -> np.ndarray:
    """Return smooth random pictures, all different: uint8, (n, side, side, 3)."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.uniform(-60, 315, (n, 3, 7, 7)).astype(np.float32))
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    grain = torch.from_numpy(random.normal(0, 12, (1, 3, side, side)).astype(np.float32))
    return (smooth + grain).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()


@torch.no_grad()
def random_model(scale: Scale) -> tuple[ResNet, ModelCard]:
    """Return a seeded random ResNet-18 whose best class differs from image to image, as that of a trained one does."""
    torch.manual_seed(18)
    model = resnet18(num_classes=scale.classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # averages over the images below, as after training
            module.weight.uniform_(0.6, 1.4)
            module.bias.normal_(0, 0.1)
    head, model.fc = model.fc, nn.Identity()
    seen = normalized(images(scale.pick(64, 8), scale.crop_px, seed=1), MEAN, STD, scale.device)
    model.to(scale.device)
    model(seen)
    model.eval()
    features = model(seen)
    head.to(scale.device)
    centered = features - features.mean(0)
    head.weight.normal_(0, LOGIT_SPREAD / 3 / float(centered.norm(dim=1).median()))
    head.bias.copy_(-head.weight @ features.mean(0))
    model.fc = head
    transform = ImageTransform(resize_px=scale.crop_px, crop_px=scale.crop_px, mean=MEAN, std=STD)
    labels = tuple(f"class {i}" for i in range(scale.classes))
    return model.cpu(), ModelCard(name="r", version="random", labels=labels, transform=transform, sha256="0" * 64)


def models(scale: Scale) -> dict[str, Callable[[], tuple[ResNet, ModelCard]]]:
    """Return loaders of the weights to check, by name."""
    return {"random": lambda: random_model(scale), "demo": lambda: load_model(WeightsConfig(source="demo"))}


def normalized(pixels: np.ndarray, mean: Iterable[float], std: Iterable[float], device: torch.device) -> torch.Tensor:
    """Normalize pixels for torchvision's model: float32, (n, 3, side, side)."""
    shift, scale = (torch.tensor([*v], device=device).view(1, 3, 1, 1) for v in (mean, std))
    return (torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2) / 255 - shift) / scale


def gpu_engine(model: ResNet, card: ModelCard, precision: str, scale: Scale, benchmark: bool) -> CudaGraphRunner:
    """Build the graph runner on the GPU; in a smoke test on the CPU, in float32.

    Args:
        model: Its batch norms are folded in place.
        card: Card of the model.
        precision: ``EngineConfig.precision``.
        scale: Names the device.
        benchmark: Let cuDNN time its kernels; takes longer.
    """
    fold(model)
    head, side = Head(to_arrays(model), card), card.transform.crop_px
    if scale.smoke:
        return CudaGraphRunner(CudaRuntime(model, card.transform, torch.float32, CPU, fused=()), head, side, CpuStream)
    return CudaGraphRunner(build_cuda_runtime(model, card.transform, precision), head, side, benchmark=benchmark)


def items(pixels: np.ndarray, top_k: int = 10) -> list[ClassifyRequest[np.ndarray]]:
    """Return requests for crops, as the classifier takes them."""
    return [ClassifyRequest(each, top_k) for each in pixels]
