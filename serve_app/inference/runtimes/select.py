"""Builds the backbone that a config asks for; ``auto`` measures which is fastest on this very CPU."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torchvision.models import ResNet

from serve_app.config import EngineConfig
from serve_app.errors import EngineError
from serve_app.inference.runtimes.base import Runtime
from serve_app.inference.runtimes.cuda.runtime import TYPES, gpu_found, on_gpu
from serve_app.inference.runtimes.folding import fold
from serve_app.inference.runtimes.int8 import int8_maker
from serve_app.inference.runtimes.mnn import MnnRuntime, to_mnn
from serve_app.inference.runtimes.onnx_graph import to_onnx
from serve_app.inference.runtimes.onnxruntime import OnnxRuntime
from serve_app.inference.runtimes.parallel import ParallelRuntime
from serve_app.inference.runtimes.torch import TorchRuntime
from serve_app.model_card import ImageTransform, ModelCard

log = logging.getLogger("serve_app")
Maker = Callable[[int], Runtime]
TOLERANCE = 1e-3  # largest error of a feature, as a share of the largest feature
ROUNDS = 4
LOST = 1.5  # times the best so far: not worth more than one round
BATCHES = (1, 8)  # alone, and under load
PAUSE = 1.0  # as a share of the time that making a lane took


def build(
    model: ResNet,
    card: ModelCard,
    spec: EngineConfig,
    cores: int,
    serving: bool = False,
    batches: Sequence[int] = BATCHES,
) -> Runtime:
    """Build a backbone from a model, which is changed in place.

    Args:
        model: In eval mode, on the CPU.
        card: The model's transform.
        spec: Which runtime, which precision.
        cores: CPU cores that its batches share.
        serving: Requests are answered by this process meanwhile, and the workers are made one by one between them.
        batches: Sizes that ``auto`` measures with.

    Raises:
        EngineError: It cannot be had here; the message is one sentence.
    """
    fold(model)
    if spec.runtime == "cuda" or (spec.runtime == "auto" and spec.precision in TYPES and gpu_found()):
        return on_gpu(model, card.transform, spec.precision)
    if spec.precision in ("fp16", "bf16"):
        raise EngineError(f"engine {spec.runtime}: precision {spec.precision} needs a GPU; a CPU has fp32 and int8")
    # Once for all workers, and only for who asks.
    written = cache(lambda: to_onnx(model, card.transform))
    graph = cache(lambda: written().SerializeToString())
    converted = cache(lambda: to_mnn(graph()))
    ours = cache(lambda: _winograd(model, card.transform))
    # ONNX Runtime's are for any number of threads at a time, so workers share one, with its weights.
    makers: dict[str, Maker] = {
        "winograd": lambda threads: ours()(threads),
        "torch": lambda threads: TorchRuntime(model, card.transform, threads),
        "onnxruntime": cache(lambda threads: OnnxRuntime(graph(), threads)),
        "mnn": lambda threads: MnnRuntime(converted(), threads, card.transform.crop_px),
    }
    if spec.precision == "int8":
        name, makers = "onnxruntime", {"onnxruntime": int8_maker(written(), card, spec.runtime)}
    else:
        # MNN's wheel ends at AVX2: where there is more it is not worth the two seconds.
        slow = {"mnn"} if torch.backends.cpu.get_cpu_capability() == "AVX512" else set()
        tried = {name: make for name, make in makers.items() if name not in slow}
        name = spec.runtime if spec.runtime != "auto" else fastest(tried, card.transform.crop_px, batches)
    make = _between_requests(makers[name]) if serving else makers[name]
    try:
        return make(cores) if name == "torch" or cores == 1 else ParallelRuntime(make, cores)
    except ImportError as error:
        raise EngineError(f"engine {name}: cannot run here ({error})") from error


def fastest(makers: Mapping[str, Maker], crop_px: int, batches: Sequence[int] = BATCHES) -> str:
    """Name the one that takes the least time on one core, of those that can be had and agree with torch.

    Each batch size counts as much as the others: ten percent of one are worth ten percent of another.
    """
    samples = [np.random.default_rng(n).integers(0, 256, (n, crop_px, crop_px, 3), np.uint8) for n in batches]
    reference = makers["torch"](1)
    with torch.inference_mode():
        expected = [reference(sample) for sample in samples]
        seconds: dict[str, float] = {}
        for name, make in makers.items():
            try:
                backbone = reference if name == "torch" else make(1)
            except ImportError as error:
                log.info("engine %s: cannot run here (%s)", name, error)
                continue
            except EngineError as error:
                log.warning("%s", error)
                continue
            found = expected if name == "torch" else [backbone(sample) for sample in samples]
            worst = max(
                float((features - wanted).abs().max() / wanted.abs().max())
                for features, wanted in zip(found, expected, strict=True)
            )
            if not worst < TOLERANCE:
                log.warning("engine %s: answers differ by %.1e and are not used", name, worst)
                continue
            seconds[name] = _per_image(backbone, samples, 1)
            if seconds[name] < LOST * min(seconds.values()):
                seconds[name] = min(seconds[name], _per_image(backbone, samples, ROUNDS - 1))
    best = min(seconds, key=lambda name: seconds[name])
    log.info("engine %s; ms per image: %s", best, {name: round(s * 1000, 1) for name, s in seconds.items()})
    return best


def _winograd(model: ResNet, transform: ImageTransform) -> Maker:
    """Imported here: numba is for who asks, and may be missing as other runtimes may."""
    from serve_app.inference.runtimes.winograd.runtime import Network, WinogradRuntime

    network = Network(model, transform)
    return lambda threads: WinogradRuntime(network, threads)


def _between_requests(make: Maker) -> Maker:
    """Let requests go on for as long as they may have waited: what a backbone does first mostly holds Python's lock."""

    def made(threads: int) -> Runtime:
        start = time.monotonic()
        backbone = make(threads)
        time.sleep(PAUSE * (time.monotonic() - start))
        return backbone

    return made


def _per_image(backbone: Runtime, samples: Sequence[np.ndarray], rounds: int) -> float:
    """Best times over the rounds, as a geometric mean over the samples: seconds."""
    return math.prod(min(_time(backbone, sample) for _ in range(rounds)) / len(sample) for sample in samples) ** (
        1 / len(samples)
    )


def _time(backbone: Runtime, sample: np.ndarray) -> float:
    start = time.perf_counter()
    backbone(sample)
    return time.perf_counter() - start
