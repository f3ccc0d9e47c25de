"""Build the runtime that the config names; ``auto`` takes the fastest on this CPU (timing.py).

The choice is kept on disk (remembered.py), so only the first start on a machine pays for the measurement.
Every runtime is compared with plain NumPy before it serves, see parity.py. torch is imported for the runtimes that need
it, ``torch`` and ``cuda``, and for no other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

from serve_app.config import EngineConfig
from serve_app.errors import EngineError
from serve_app.inference.network import Arrays, fold
from serve_app.inference.runtimes.base import Runtime, RuntimeFactory
from serve_app.inference.runtimes.factories import amx_factory, runtime_factories, winograd_factory
from serve_app.inference.runtimes.gpu import gpu_available
from serve_app.inference.runtimes.int8 import int8_factory
from serve_app.inference.runtimes.onnx_graph import to_onnx
from serve_app.inference.runtimes.parallel import ParallelRuntime
from serve_app.inference.runtimes.parity import Reference
from serve_app.inference.runtimes.remembered import RememberedChoice
from serve_app.inference.runtimes.timing import rank_in_child
from serve_app.model_card import ModelCard

log = logging.getLogger("serve_app")
TIMED_BATCH_SIZES = (1, 8)  # a single request, and a batch under load
PAUSE_RATIO = 1.0  # pause after building a runtime, relative to the time that building took


def build_runtime(
    arrays: Arrays,
    card: ModelCard,
    config: EngineConfig,
    cores: int,
    serving: bool = False,
    batch_sizes: Sequence[int] = TIMED_BATCH_SIZES,
) -> Runtime:
    """Build the runtime that a config asks for and compare its features with those of plain NumPy.

    Where ``auto`` takes a CPU runtime that differs, the next fastest takes its place. ``build_cuda_runtime`` compares
    a GPU with PyTorch on the CPU itself.

    Args:
        arrays: The weights.
        card: The model's transform and calibration.
        config: Runtime and precision.
        cores: CPU cores that the runtime's batches share.
        serving: Another engine of this process answers requests meanwhile, so building pauses between the runtimes.
        batch_sizes: Sizes that ``auto`` times.

    Raises:
        EngineError: The weights are broken, this machine cannot run that runtime or precision, or its features differ.
    """
    reference = Reference(arrays, card.transform)
    cpu_only = config.precision in ("int8", "int16")
    if config.runtime == "cuda" or (config.runtime == "auto" and not cpu_only and gpu_available()):
        return _build_cuda(arrays, card, config)
    candidates = _cpu_candidates(arrays, card, config)
    remembered = RememberedChoice(card, cores, batch_sizes)
    known = remembered.read() if len(candidates) > 1 else None
    failure = EngineError(f"engine {config.runtime}: no runtime can run here")
    for name in _in_order(candidates, known, arrays, card, batch_sizes):
        try:
            runtime = _build(name, candidates[name], cores, serving)
            reference.check(runtime)
        except EngineError as error:
            log.warning("%s", error)
            failure = error
        else:
            if len(candidates) > 1 and name != known:
                remembered.write(name)
            log.info("engine %s", name)
            return runtime
    raise failure


def _in_order(
    candidates: dict[str, RuntimeFactory],
    known: str | None,
    arrays: Arrays,
    card: ModelCard,
    batch_sizes: Sequence[int],
) -> Iterator[str]:
    """Yield the candidates, each once: the one that an earlier start chose, then, by a measurement, the fastest."""
    if len(candidates) == 1:
        yield from candidates
        return
    if known in candidates:
        yield known
    yield from (name for name in rank_in_child(arrays, card.transform, batch_sizes) if name != known)


def _build_cuda(arrays: Arrays, card: ModelCard, config: EngineConfig) -> Runtime:
    from serve_app.inference.runtimes.cuda.runtime import build_cuda_runtime
    from serve_app.inference.runtimes.folding import fold as fold_model
    from serve_app.inference.torch_model import to_model

    return build_cuda_runtime(fold_model(to_model(arrays)), card.transform, config.precision)


def _cpu_candidates(arrays: Arrays, card: ModelCard, config: EngineConfig) -> dict[str, RuntimeFactory]:
    """Return the CPU runtimes from which ``auto`` chooses, or only the one that a config names."""
    if config.precision == "fp16":
        raise EngineError(
            f"engine {config.runtime}: precision fp16 needs a GPU; on a CPU use fp32, bf16, int16, int8 or auto"
        )
    if config.precision == "bf16":
        if config.runtime not in ("auto", "amx"):
            raise EngineError(f"engine {config.runtime}: on a CPU, precision bf16 needs the runtime amx or auto")
        return {"amx": amx_factory(lambda: fold(arrays), card.transform, bfloat16=True)}
    if config.precision == "int16":
        if config.runtime not in ("auto", "winograd"):
            raise EngineError(f"engine {config.runtime}: precision int16 needs the runtime winograd or auto")
        return {"winograd": winograd_factory(lambda: fold(arrays), card.transform, int16=True)}
    if config.precision == "int8":
        return {"onnxruntime": int8_factory(to_onnx(fold(arrays), card.transform), card, config.runtime)}
    factories = runtime_factories(arrays, card.transform)
    return factories if config.runtime == "auto" else {config.runtime: factories[config.runtime]}


def _build(name: str, build: RuntimeFactory, cores: int, serving: bool) -> Runtime:
    if serving:
        build = _with_pauses(build)
    try:
        return build(cores) if name == "torch" or cores == 1 else ParallelRuntime(build, cores)
    except ImportError as error:
        raise EngineError(f"engine {name}: cannot run here ({error})") from error


def _with_pauses(build: RuntimeFactory) -> RuntimeFactory:
    """Pause after each runtime: building mostly holds the global interpreter lock, and requests wait for it."""

    def build_and_pause(threads: int) -> Runtime:
        start = time.monotonic()
        runtime = build(threads)
        time.sleep(PAUSE_RATIO * (time.monotonic() - start))
        return runtime

    return build_and_pause
