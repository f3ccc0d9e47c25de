"""select.py: the runtime that ``auto`` takes, and the errors of runtimes that cannot run here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.errors import EngineError
from serve_app.inference.child import ChildError
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.runtimes import select, timing
from serve_app.inference.runtimes.amx import tiles
from serve_app.inference.runtimes.cuda import runtime as cuda
from serve_app.inference.runtimes.folding import fold
from serve_app.inference.runtimes.torch import TorchRuntime
from serve_app.inference.torch_model import to_model
from serve_app.inference.weights import load_weights
from serve_app.paths import CACHE_VARIABLE
from tests.support.cuda_on_cpu import cuda_runtime_on_cpu
from tests.support.runtimes import amx_permitted, needs_amx

BATCHES = (1, 8)


class FakeClock:
    """A replacement for the module ``time``; time passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    thread_time = monotonic

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(select, "time", fake)
    monkeypatch.setattr(timing, "time", fake)
    return fake


class FakeRuntime:
    """A runtime with a known time per batch."""

    name, workers = "fake", 1

    def __init__(self, clock: FakeClock, seconds: Callable[[int], float]) -> None:
        self._clock, self._seconds = clock, seconds

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self._clock.now += self._seconds(len(pixels))
        return np.zeros((len(pixels), 512, 1, 1), np.float32)


def fail(error: Exception) -> FakeRuntime:
    raise error


@pytest.mark.parametrize(("winograd_s", "fastest"), [(0.001, "winograd"), (0.02, "onnxruntime")])
def test_auto_takes_the_fastest(clock: FakeClock, winograd_s: float, fastest: str) -> None:
    factories = {
        "onnxruntime": lambda threads: FakeRuntime(clock, lambda images: 0.01),
        "winograd": lambda threads: FakeRuntime(clock, lambda images: winograd_s),
    }
    assert timing.rank_runtimes(factories, 8, BATCHES)[0] == fastest


@pytest.mark.parametrize(
    "error", [ImportError("no module named onnxruntime"), EngineError("engine onnxruntime: failed")], ids=repr
)
def test_auto_goes_on_without_a_runtime_that_cannot_be_built(clock: FakeClock, error: Exception) -> None:
    """A runtime that is not installed or fails does not stop ``auto``."""
    factories = {
        "onnxruntime": lambda threads: fail(error),
        "winograd": lambda threads: FakeRuntime(clock, lambda images: 0.02),
    }
    assert timing.rank_runtimes(factories, 8, BATCHES) == ["winograd"]


@pytest.mark.parametrize("calls", [0, 2, 4], ids=("first", "first round", "later rounds"))
def test_a_runtime_that_fails_while_it_is_timed_is_not_ranked(clock: FakeClock, calls: int) -> None:
    """Whether it fails in its first call or later."""
    times = iter([0.01] * calls)
    factories = {
        "onnxruntime": lambda threads: FakeRuntime(clock, lambda images: next(times)),
        "winograd": lambda threads: FakeRuntime(clock, lambda images: 0.02),
    }
    assert timing.rank_runtimes(factories, 8, BATCHES) == ["winograd"]


def test_torch_comes_last_without_being_built(clock: FakeClock) -> None:
    """Importing it takes seconds of a start."""
    factories = {
        "torch": lambda threads: fail(AssertionError("torch was built")),
        "winograd": lambda threads: FakeRuntime(clock, lambda images: 0.02),
    }
    assert timing.rank_runtimes(factories, 8, BATCHES) == ["winograd", "torch"]


def test_each_batch_size_counts_as_much_as_the_others(clock: FakeClock) -> None:
    """A quarter less time for a single image does not outweigh a third less for full batches."""

    def factory(single: float, per_image: float) -> Callable[[int], FakeRuntime]:
        return lambda threads: FakeRuntime(clock, lambda images: single if images == 1 else per_image * images)

    factories = {"winograd": factory(0.008, 0.006), "onnxruntime": factory(0.0105, 0.004)}
    assert timing.rank_runtimes(factories, 8, BATCHES)[0] == "onnxruntime"
    assert timing.rank_runtimes(factories, 8, (8,))[0] == "onnxruntime"
    assert timing.rank_runtimes(factories, 8, (1,))[0] == "winograd"


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_auto_takes_the_gpu(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
    """``auto`` takes the GPU if there is one."""
    built: list[str] = []

    def build_cuda_runtime(model: object, transform: object, precision: str) -> object:
        built.append(precision)
        return cuda_runtime_on_cpu(weights)

    monkeypatch.setattr(select, "gpu_available", lambda: True)
    monkeypatch.setattr(cuda, "build_cuda_runtime", build_cuda_runtime)
    assert select.build_runtime(*load_weights(weights), EngineConfig(precision=precision), 1).name == "cuda"
    assert built == [precision]


def test_int8_takes_the_cpu_although_there_is_a_gpu(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` with int8 goes to ONNX Runtime, which here finds no calibration."""
    monkeypatch.setattr(select, "gpu_available", lambda: True)
    with pytest.raises(EngineError, match="holds no calibration"):
        select.build_runtime(*load_weights(weights), EngineConfig(precision="int8"), 1)


def test_a_missing_library_is_one_sentence(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime whose library is missing fails with a sentence that names it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="engine onnxruntime: cannot run here"):
        ResNetEngine(*load_weights(weights), EngineConfig(runtime="onnxruntime"))


def test_a_cpu_without_avx2_is_one_sentence(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The winograd runtime names the CPU features that it needs."""
    kernels = pytest.importorskip("serve_app.inference.runtimes.winograd.kernels")
    monkeypatch.setattr(kernels, "SUPPORTED", False)
    with pytest.raises(EngineError, match=r"engine winograd: cannot run here \(this CPU has neither AVX2 nor AVX-512"):
        ResNetEngine(*load_weights(weights), EngineConfig(runtime="winograd"))


def test_a_cpu_without_amx_is_one_sentence(
    weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The amx runtime names what it needs, and ``auto`` does without it."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))  # no choice of an earlier start
    monkeypatch.setattr(tiles, "SUPPORTED", False)
    with pytest.raises(EngineError, match=r"engine amx: cannot run here \(this CPU has no AMX with bfloat16\)"):
        ResNetEngine(*load_weights(weights), EngineConfig(runtime="amx"))
    monkeypatch.setattr(select, "rank_in_child", lambda *_: ["amx", "onnxruntime"])
    assert select.build_runtime(*load_weights(weights), EngineConfig(precision="fp32"), 1).name == "onnxruntime"


def test_bf16_without_amx_is_one_sentence(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, bfloat16 has one runtime."""
    monkeypatch.setattr(tiles, "SUPPORTED", False)
    monkeypatch.setattr(select, "gpu_available", lambda: False)
    with pytest.raises(EngineError, match=r"engine amx: cannot run here \(this CPU has no AMX with bfloat16\)"):
        ResNetEngine(*load_weights(weights), EngineConfig(precision="bf16"))


def test_int16_uses_no_gpu(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like int8, it is a precision of CPUs."""
    monkeypatch.setattr(select, "gpu_available", lambda: True)
    assert ResNetEngine(*load_weights(weights), EngineConfig(precision="int16")).runtime == "winograd int16"


@needs_amx
def test_a_system_that_does_not_permit_amx_is_one_sentence(
    weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux refuses the request, as a sandbox that filters system calls does."""
    monkeypatch.setattr(tiles, "TILE_DATA", 63)  # no feature of any CPU
    with pytest.raises(EngineError, match=r"engine amx: cannot run here \(the system does not permit AMX\)"):
        ResNetEngine(*load_weights(weights), EngineConfig(runtime="amx"))


def test_building_beside_requests_pauses_as_long_as_it_took(
    weights: WeightsConfig, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``serving``, a pause follows each runtime, as long as building it took."""
    arrays, card = load_weights(weights)
    model = fold(to_model(arrays))

    def build(threads: int) -> TorchRuntime:
        clock.now += 0.2
        return TorchRuntime(model, card.transform, threads)

    monkeypatch.setattr(select, "runtime_factories", lambda *_: {"winograd": build})
    select.build_runtime(arrays, card, EngineConfig(runtime="winograd"), cores=2, serving=True)
    assert clock.slept == [pytest.approx(0.2 * select.PAUSE_RATIO)] * 3  # one runtime for both cores, one for each


def test_without_a_measurement_our_kernels_come_first(
    weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the process that times the runtimes cannot start or crashes; the comparison still decides what serves."""

    def crash(*_arguments: str, stdin: bytes) -> str:
        raise ChildError("exit code -4")

    monkeypatch.setattr(timing, "run_child", crash)
    arrays, card = load_weights(weights)
    assert timing.rank_in_child(arrays, card.transform, BATCHES)[:2] == ["amx", "winograd"]
    assert "the runtimes could not be timed (exit code -4)" in caplog.text


def test_the_process_ranks_the_runtimes(weights: WeightsConfig) -> None:
    """All that are installed, each once, torch at the end."""
    arrays, card = load_weights(weights)
    *measured, last = timing.rank_in_child(arrays, card.transform, (1,))
    assert (sorted(measured), last) == (["amx"] * amx_permitted() + ["onnxruntime", "winograd"], "torch")
