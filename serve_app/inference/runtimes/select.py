"""Build the runtime that the config names; ``auto`` times every runtime on this CPU and takes the fastest.

The choice is kept on disk (remembered.py), so only the first start on a machine pays for the measurement.
Every runtime is compared with PyTorch before it serves, see parity.py.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from torchvision.models import ResNet

from serve_app.config import EngineConfig
from serve_app.errors import EngineError
from serve_app.inference.runtimes.base import Runtime, RuntimeFactory
from serve_app.inference.runtimes.cuda.runtime import DTYPES, build_cuda_runtime, gpu_available
from serve_app.inference.runtimes.folding import fold
from serve_app.inference.runtimes.int8 import int8_factory
from serve_app.inference.runtimes.onnx_graph import to_onnx
from serve_app.inference.runtimes.onnxruntime import OnnxRuntime
from serve_app.inference.runtimes.parallel import ParallelRuntime
from serve_app.inference.runtimes.parity import FLOAT_TOLERANCE, Reference, relative_error
from serve_app.inference.runtimes.remembered import RememberedChoice
from serve_app.inference.runtimes.torch import TorchRuntime
from serve_app.model_card import ImageTransform, ModelCard

log = logging.getLogger("serve_app")
ROUNDS = 4
DROP_RATIO = 1.5  # a runtime that takes this many times the best time so far is timed in one round only
TIMED_BATCH_SIZES = (1, 8)  # a single request, and a batch under load
PAUSE_RATIO = 1.0  # pause after building a runtime, relative to the time that building took


def build_runtime(
    model: ResNet,
    card: ModelCard,
    config: EngineConfig,
    cores: int,
    serving: bool = False,
    batch_sizes: Sequence[int] = TIMED_BATCH_SIZES,
) -> Runtime:
    """Build the runtime that a config asks for and compare its features with PyTorch's.

    Where ``auto`` takes a CPU runtime that differs, the next fastest takes its place. ``build_cuda_runtime`` compares
    a GPU with the CPU itself.

    Args:
        model: In eval mode, on the CPU; its batch norms are folded in place.
        card: The model's transform and calibration.
        config: Runtime and precision.
        cores: CPU cores that the runtime's batches share.
        serving: Another engine of this process answers requests meanwhile, so building pauses between the runtimes.
        batch_sizes: Sizes that ``auto`` times.

    Raises:
        EngineError: The weights are broken, this machine cannot run that runtime or precision, or its features differ.
    """
    reference = Reference(model, card.transform)
    fold(model)
    if config.runtime == "cuda" or (config.runtime == "auto" and config.precision in DTYPES and gpu_available()):
        return build_cuda_runtime(model, card.transform, config.precision)
    candidates = _cpu_candidates(model, card, config)
    remembered = RememberedChoice(card, cores, batch_sizes)
    choice = remembered.read() if len(candidates) > 1 else None
    while True:
        only = next(iter(candidates)) if len(candidates) == 1 else None
        known = only or (choice if choice in candidates else None)
        name = known or fastest_runtime(candidates, card.transform.crop_px, batch_sizes)
        try:
            runtime = _build(name, candidates[name], cores, serving)
            reference.check(runtime)
        except EngineError as error:
            if only or name == "torch":
                raise
            log.warning("%s", error)
            del candidates[name]
        else:
            if not known:
                remembered.write(name)
            return runtime


def _cpu_candidates(model: ResNet, card: ModelCard, config: EngineConfig) -> dict[str, RuntimeFactory]:
    """Return the CPU runtimes from which ``auto`` chooses, or only the one that a config names."""
    if config.precision in ("fp16", "bf16"):
        raise EngineError(
            f"engine {config.runtime}: precision {config.precision} needs a GPU; on a CPU use fp32, int8 or auto"
        )
    if config.precision == "int8":
        return {"onnxruntime": int8_factory(to_onnx(model, card.transform), card, config.runtime)}
    factories = runtime_factories(model, card.transform)
    return factories if config.runtime == "auto" else {config.runtime: factories[config.runtime]}


def _build(name: str, build: RuntimeFactory, cores: int, serving: bool) -> Runtime:
    if serving:
        build = _with_pauses(build)
    try:
        return build(cores) if name == "torch" or cores == 1 else ParallelRuntime(build, cores)
    except ImportError as error:
        raise EngineError(f"engine {name}: cannot run here ({error})") from error


def runtime_factories(model: ResNet, transform: ImageTransform) -> dict[str, RuntimeFactory]:
    """Return a factory for each CPU runtime; graphs and packed weights are made once, at the first use."""
    graph = cache(lambda: to_onnx(model, transform).SerializeToString())
    winograd = cache(lambda: _winograd_factory(model, transform))
    return {
        "winograd": lambda threads: winograd()(threads),
        "torch": lambda threads: TorchRuntime(model, transform, threads),
        # Any number of threads may call one OnnxRuntime, so the workers share it and its weights.
        "onnxruntime": cache(lambda threads: OnnxRuntime(graph(), threads)),
    }


def fastest_runtime(
    factories: Mapping[str, RuntimeFactory], crop_px: int, batch_sizes: Sequence[int] = TIMED_BATCH_SIZES
) -> str:
    """Return the name of the fastest runtime on one core, of those that are installed and agree with torch.

    Times are compared by their geometric mean over the batch sizes, so that 10 % of a small batch's time count as much
    as 10 % of a large one's. ``torch`` must be among the factories.
    """
    samples = [np.random.default_rng(n).integers(0, 256, (n, crop_px, crop_px, 3), np.uint8) for n in batch_sizes]
    reference = factories["torch"](1)
    with torch.inference_mode():
        expected = [reference(sample) for sample in samples]
        seconds: dict[str, float] = {}
        for name, build in factories.items():
            try:
                runtime = reference if name == "torch" else build(1)
                features = expected if runtime is reference else [runtime(sample) for sample in samples]
            except ImportError as error:
                log.info("engine %s: cannot run here (%s)", name, error)
                continue
            except Exception as error:
                log.warning("engine %s: not used, it fails: %s", name, error)
                continue
            deviation = max(relative_error(*pair) for pair in zip(features, expected, strict=True))
            if not deviation < FLOAT_TOLERANCE:  # NaN fails too
                log.warning("engine %s: not used, its features differ from torch's by %.1e", name, deviation)
                continue
            seconds[name] = _time_per_image(runtime, samples, 1)
            if seconds[name] < DROP_RATIO * min(seconds.values()):
                seconds[name] = min(seconds[name], _time_per_image(runtime, samples, ROUNDS - 1))
    fastest = min(seconds, key=lambda name: seconds[name])
    log.info("engine %s; ms per image: %s", fastest, {name: round(s * 1000, 1) for name, s in seconds.items()})
    return fastest


def _winograd_factory(model: ResNet, transform: ImageTransform) -> RuntimeFactory:
    # Imported here because numba may be missing, as every runtime's library may.
    from serve_app.inference.runtimes.winograd.runtime import PackedNetwork, WinogradRuntime

    network = PackedNetwork(model, transform)
    return lambda threads: WinogradRuntime(network, threads)


def _with_pauses(build: RuntimeFactory) -> RuntimeFactory:
    """Pause after each runtime: building mostly holds the global interpreter lock, and requests wait for it."""

    def build_and_pause(threads: int) -> Runtime:
        start = time.monotonic()
        runtime = build(threads)
        time.sleep(PAUSE_RATIO * (time.monotonic() - start))
        return runtime

    return build_and_pause


def _time_per_image(runtime: Runtime, samples: Sequence[np.ndarray], rounds: int) -> float:
    """Return seconds per image: the best round of each sample, and their geometric mean."""

    def seconds(sample: np.ndarray) -> float:
        start = time.perf_counter()
        runtime(sample)
        return time.perf_counter() - start

    best = [min(seconds(sample) for _ in range(rounds)) / len(sample) for sample in samples]
    return math.prod(best) ** (1 / len(samples))
