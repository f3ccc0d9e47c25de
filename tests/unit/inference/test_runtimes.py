"""Stage 3's runtimes: which one is taken, what is refused, and that none of them calls out."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.errors import EngineError
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.runtimes import base as cpu
from serve_app.inference.runtimes import select
from serve_app.inference.runtimes.folding import fold
from serve_app.inference.runtimes.mnn import CONVERTER, to_mnn
from serve_app.inference.runtimes.onnx_graph import to_onnx
from serve_app.inference.runtimes.parallel import ParallelRuntime
from serve_app.inference.runtimes.winograd import kernels as cpu_kernels
from serve_app.inference.runtimes.winograd import runtime as winograd
from serve_app.inference.weights import load_model
from serve_app.messages import ClassifyItem
from serve_app.model_card import ImageTransform
from tests.support.paths import ROOT

TRANSFORM = ImageTransform(resize_px=40, crop_px=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


needs_vectors = pytest.mark.skipif(not cpu_kernels.AVAILABLE, reason="this CPU has neither AVX2 nor AVX-512")


class Fake:
    """A backbone of known speed and known error."""

    device, workers = torch.device("cpu"), 1

    def __init__(self, name: str, seconds: Callable[[int], float], error: float = 0.0) -> None:
        self.name, self._seconds, self._error = name, seconds, error

    def __call__(self, pixels: np.ndarray) -> Tensor:
        ends = select.time.perf_counter() + self._seconds(len(pixels))
        while select.time.perf_counter() < ends:
            pass
        return torch.ones(len(pixels), 512, 1, 1) + self._error


def missing(threads: int) -> Fake:
    raise ImportError("no module named mnn")


def taking(seconds: float, error: float = 0.0) -> Callable[[int], Fake]:
    return lambda threads: Fake("fake", lambda images: seconds, error)


@pytest.mark.parametrize(
    ("torch_s", "mnn", "taken"),
    [
        (0.02, taking(0.001), "mnn"),
        (0.001, taking(0.02), "torch"),
        (0.02, taking(0.001, error=0.01), "torch"),
        (0.02, taking(0.001, error=float("nan")), "torch"),
        (0.02, missing, "torch"),
    ],
    ids=("faster", "slower", "wrong", "not a number", "not installed"),
)
def test_auto_takes_the_fastest_that_agrees(torch_s: float, mnn: Callable[[int], Fake], taken: str) -> None:
    assert select.fastest({"torch": taking(torch_s), "mnn": mnn}, 8) == taken


def test_each_batch_size_counts_as_much_as_the_others() -> None:
    """A quarter less for a lone image is not worth half more in full batches, though it is more milliseconds."""

    def sized(alone: float, full: float) -> Callable[[int], Fake]:
        return lambda threads: Fake("fake", lambda images: alone if images == 1 else full * images)

    makers = {"torch": sized(0.008, 0.006), "mnn": sized(0.0105, 0.004)}
    assert select.fastest(makers, 8) == "mnn"
    assert select.fastest(makers, 8, (8,)) == "mnn"
    assert select.fastest(makers, 8, (1,)) == "torch"


def test_lanes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lone batch gets all cores, unless two met lately; two at a time one each; the answers go to their callers."""
    monkeypatch.setattr(cpu, "LATELY_S", 0.3)
    made: list[int] = []
    used: list[int] = []
    alone_may_end, both = threading.Event(), threading.Barrier(2)

    def make(threads: int) -> Fake:
        made.append(threads)

        class Counting(Fake):
            def __call__(self, pixels: np.ndarray) -> Tensor:
                used.append(threads)
                if threads == 2:
                    alone_may_end.wait(10)
                elif len(used) <= 3:
                    both.wait(10)
                return torch.full((len(pixels), 512, 1, 1), float(pixels[0, 0, 0, 0]))

        return Counting("fake", 0)

    workers = ParallelRuntime(make, 2)
    assert made == [2, 1, 1]
    assert workers.workers == 2

    with ThreadPoolExecutor(2) as threads:

        def submit(value: int) -> Future[Tensor]:
            return threads.submit(workers, np.full((1, 2, 2, 3), value, np.uint8))

        first = submit(1)
        while not used:
            time.sleep(0.001)
        second = submit(2)
        time.sleep(0.05)
        assert used == [2]  # the second waits
        alone_may_end.set()
        first.result(10)
        third = submit(3)
        assert [float(each.result(10)[0, 0, 0, 0]) for each in (first, second, third)] == [1, 2, 3]
    workers(np.zeros((1, 2, 2, 3), np.uint8))
    assert used == [2, 1, 1, 1]
    time.sleep(0.4)
    workers(np.zeros((1, 2, 2, 3), np.uint8))
    assert used[-1] == 2


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "winograd", "mnn"])
def test_concurrent_batches_get_their_own_answers(weights: WeightsConfig, runtime: Any) -> None:
    """Three cores, three threads, batches of changing size: each as if it were alone."""
    if runtime == "mnn":
        pytest.importorskip("MNN", reason="no build of MNN for this platform")
    engine = ResNetEngine(*load_model(weights), EngineConfig(runtime=runtime), cores=3)
    random = np.random.default_rng(0)
    batches = [
        [ClassifyItem(random.integers(0, 256, (96, 96, 3), np.uint8), 3) for _ in range(size)]
        for size in (1, 3, 2, 1, 4, 2) * 3
    ]
    alone = [engine.classify(batch) for batch in batches]
    with ThreadPoolExecutor(engine.workers) as threads:
        together = list(threads.map(engine.classify, batches))
    for one, other in zip(alone, together, strict=True):
        assert [answer.class_ids for answer in one] == [answer.class_ids for answer in other]
        np.testing.assert_allclose([a.scores for a in one], [a.scores for a in other], atol=1e-4)


def test_a_missing_runtime_is_one_sentence(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="engine onnxruntime: cannot run here"):
        ResNetEngine(*load_model(weights), EngineConfig(runtime="onnxruntime"))


def test_the_graph_is_valid_onnx() -> None:
    """Raw uint8 pixels in, any batch size, no training-only operation left."""
    torch.manual_seed(0)
    graph = to_onnx(fold(resnet18().eval()), TRANSFORM)
    onnx.checker.check_model(graph, full_check=True)
    (given,) = graph.graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    kinds = {node.op_type for node in graph.graph.node}
    assert kinds == {"Cast", "Transpose", "Sub", "Mul", "Conv", "Relu", "MaxPool", "Add"}


def compare_winograd(crop_px: int, threads: int) -> None:
    """Fail if a batch, a lone image or more images than go at a time get other features than torch's."""
    torch.manual_seed(1)
    model, transform = fold(resnet18().eval()), TRANSFORM.model_copy(update={"crop_px": crop_px})
    pixels = np.random.default_rng(1).integers(0, 256, (winograd.IMAGES + 3, crop_px, crop_px, 3), np.uint8)
    with torch.inference_mode():
        expected = cpu.TorchRuntime(model, transform, 1)(pixels)
    found = winograd.WinogradRuntime(winograd.Network(model, transform), threads)
    for part in (slice(None), slice(1), slice(2, 5)):
        assert found(pixels[part]).shape == expected[part].shape
        np.testing.assert_allclose(found(pixels[part]), expected[part], atol=1e-5 * float(expected.max()))


@needs_vectors
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("crop_px", [32, 97, 150, 224])
def test_winograd_changes_no_answer(crop_px: int, threads: int) -> None:
    """Whatever the sides of the feature maps: multiples of the tile's four, less than it, or between."""
    compare_winograd(crop_px, threads)


@needs_vectors
def test_winograd_with_256_bits(tmp_path: Path) -> None:
    """What a CPU without AVX-512 runs, compiled on any: half as wide, fewer rows at a time, other panels."""
    program = (
        "from llvmlite import binding\n"
        "found = binding.get_host_cpu_features()\n"
        "found['avx512f'] = False\n"
        "binding.get_host_cpu_features = lambda: found\n"
        "from serve_app.inference.runtimes.winograd import kernels as cpu_kernels\n"
        "from tests.unit.inference.test_runtimes import compare_winograd\n"
        "for threads in (1, 2):\n"
        "    compare_winograd(96, threads)\n"
        "print('floats', cpu_kernels.VECTOR_FLOATS)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "floats 8\n"), done.stderr


@needs_vectors
def test_winograd_needs_no_folder_to_keep_its_code_in() -> None:
    """As in a container whose files are read-only and whose user has no home: compiled in each process then."""
    program = (
        "from serve_app.inference.runtimes.winograd import kernels as cpu_kernels\n"
        "from tests.unit.inference.test_runtimes import compare_winograd\n"
        "compare_winograd(32, 1)\n"
        "print(type(cpu_kernels.run._cache).__name__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "NullCache\n"), done.stderr


@needs_vectors
def test_winograd_hides_no_broken_weights() -> None:
    """What is not a number stays so, as in torch, and is not cut to zero by a ReLU."""
    model = fold(resnet18().eval())
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0, 0, 0] = torch.nan
    found = winograd.WinogradRuntime(winograd.Network(model, TRANSFORM), 1)(np.zeros((1, 32, 32, 3), np.uint8))
    assert found.isnan().all()


def test_a_cpu_without_wide_vectors_is_one_sentence(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "AVAILABLE", False)
    with pytest.raises(EngineError, match=r"engine winograd: cannot run here \(this CPU has neither AVX2 nor AVX-512"):
        ResNetEngine(*load_model(weights), EngineConfig(runtime="winograd"))


def test_unfolded_models_are_refused() -> None:
    with pytest.raises(ValueError, match="fold the batch norms first"):
        to_onnx(resnet18().eval(), TRANSFORM)


HOOK = """import os, sys
BAD = ('socket.connect', 'socket.getaddrinfo', 'subprocess.Popen', 'os.system', 'os.posix_spawn', 'os.exec')
def hook(event, args):
    converter = event == 'subprocess.Popen' and args[0] == sys.executable and '_tools' in str(args[1])
    libraries = event == 'subprocess.Popen' and args[0].endswith('ldconfig')
    if event in BAD and not converter and not libraries:
        with open(os.environ['CALLS'], 'a') as calls:
            print(event, args, file=calls)
sys.addaudithook(hook)
"""


def test_no_runtime_calls_out(tmp_path: Path) -> None:
    """Building and running every one opens no connection and starts no process, as MNN's own tools would.

    Allowed are Python for MNN's compiled converter, of which the same holds, and the search for libraries on import.
    """
    program = (
        "from serve_app.inference.engine import ResNetEngine\n"
        "from serve_app.config import WeightsConfig, EngineConfig\n"
        "from serve_app.inference.weights import load_model\n"
        "import sys\n"
        "engine = ResNetEngine(*load_model(WeightsConfig(source='demo')), EngineConfig())\n"
        "engine.warm_up(2)\n"
        "ResNetEngine(*load_model(WeightsConfig(source='demo')), EngineConfig(precision='int8')).warm_up(2)\n"
        "print('RAN', engine.runtime, sorted(name for name in sys.modules if name.startswith('MNN.tools')))\n"
    )
    (tmp_path / "sitecustomize.py").write_text(HOOK)  # each Python that starts reads it
    (tmp_path / "calls").touch()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "CALLS": str(tmp_path / "calls")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (tmp_path / "calls").read_text() == ""
    assert "RAN" in done.stdout
    assert done.stdout.strip().endswith("[]")


@pytest.mark.skipif(find_spec(CONVERTER) is None, reason="MNN is not installed here")
def test_a_failed_conversion_is_one_sentence() -> None:
    with pytest.raises(EngineError, match="engine mnn: its converter failed: "):
        to_mnn(b"no graph")


def test_a_lane_made_beside_requests_leaves_them_as_long_as_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a clock that is turned by hand."""
    now = [0.0]
    slept: list[float] = []
    monkeypatch.setattr(select, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=slept.append))

    def make(_threads: int) -> Any:
        now[0] += 0.2
        return "a lane"

    assert select._between_requests(make)(1) == "a lane"
    assert slept == [pytest.approx(0.2 * select.PAUSE)]
