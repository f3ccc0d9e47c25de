"""Stage 3 on a GPU. What surrounds CUDA is tested on any machine, CUDA itself where there is a GPU."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu import roofline
from benchmarks.gpu.smoke import CpuStream
from serve_app.config import EngineConfig, WeightsConfig
from serve_app.errors import EngineError
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.head import Head
from serve_app.inference.runtimes import select
from serve_app.inference.runtimes.cuda import runtime as cuda
from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner, sizes_up_to
from serve_app.inference.runtimes.cuda.kernels import CONVERSION, Kernels, compiled
from serve_app.inference.runtimes.cuda.runtime import FUSED, OWN, TOLERANCE, CudaRuntime, gpu_found, largest_error
from serve_app.inference.runtimes.folding import fold
from serve_app.inference.weights import load_model
from serve_app.messages import Classification, ClassifyItem, Explain
from tests.support.paths import ROOT

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not gpu_found(), reason="there is no NVIDIA GPU on this machine")
needs_no_gpu = pytest.mark.skipif(gpu_found(), reason="there is an NVIDIA GPU on this machine")


def backbone_on_cpu(
    weights: WeightsConfig, dtype: torch.dtype = torch.float32, fused: Collection[str] = ()
) -> CudaRuntime:
    model, card = load_model(weights)
    return CudaRuntime(fold(model), card.transform, dtype, CPU, fused)


@pytest.fixture(scope="module")
def workers(weights: WeightsConfig) -> CudaGraphRunner:
    """The GPU's batches with a CPU in the GPU's place."""
    model, card = load_model(weights)
    workers = CudaGraphRunner(backbone_on_cpu(weights), Head(model.fc, CPU), card.transform.crop_px, CpuStream)
    workers.warm_up(6)
    return workers


@pytest.fixture(scope="module")
def reference(weights: WeightsConfig) -> ResNetEngine:
    return ResNetEngine(*load_model(weights), EngineConfig(runtime="torch"))


def items(n: int, seed: int = 0) -> list[ClassifyItem]:
    """Images that ask for different things."""
    random = np.random.default_rng(seed)
    explain: list[Explain] = [None, "top", 3, None, 0]
    return [
        ClassifyItem(random.integers(0, 256, (96, 96, 3), np.uint8), int(random.integers(1, 8)), explain[i % 5])
        for i in range(n)
    ]


def same(found: list[Classification], expected: list[Classification], tolerance: float = 1e-4) -> bool:
    """Also in which of them have a map."""
    pairs = list(zip(found, expected, strict=True))
    for one, other in pairs:
        if one.class_ids[0] != other.class_ids[0] or len(one.scores) != len(other.scores):
            return False
        if np.abs(np.subtract(one.scores, other.scores)).max() > tolerance or abs(one.entropy - other.entropy) > 0.01:
            return False
        if (one.activation_map is None) != (other.activation_map is None):
            return False
        if one.activation_map and other.activation_map:
            a, b = one.activation_map, other.activation_map
            if a.class_id != b.class_id or abs(a.logit - b.logit) > 100 * tolerance:
                return False
            if np.abs(a.values - b.values).max() > 100 * tolerance:
                return False
    return True


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (24, [1, 2, 4, 8, 16, 24]),
        (256, [2**n for n in range(9)]),
        (1024, [2**n for n in range(9)]),
    ],
)
def test_sizes_grow_to_the_largest_batch(batch: int, sizes: list[int]) -> None:
    assert sizes_up_to(batch) == sizes


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 12, 13])
def test_any_batch_gets_plain_answers(workers: CudaGraphRunner, reference: ResNetEngine, n: int) -> None:
    """Filled up to the next size, or split at the largest (6), with maps only where asked."""
    batch = items(n, seed=n)
    assert workers.sizes == [1, 2, 4, 6]
    assert same(workers(batch), reference.classify(batch))


def test_what_an_earlier_batch_left_does_not_matter(workers: CudaGraphRunner, reference: ResNetEngine) -> None:
    """Also when a small batch follows a large one in the same buffers."""
    workers(items(6, seed=1))
    for seed in range(4):
        batch = items(5, seed=seed)
        assert same(workers(batch), reference.classify(batch))


def test_answers_do_not_change_later(workers: CudaGraphRunner) -> None:
    """Nothing in an answer is a view of a buffer."""
    batch = items(5)
    before = [workers(batch), workers(batch)]
    kept = [answer.activation_map.values.copy() for answer in before[0] if answer.activation_map]
    for seed in range(4):
        workers(items(5, seed=seed + 9))
    after = [answer.activation_map.values for answer in before[0] if answer.activation_map]
    assert all((a == b).all() for a, b in zip(kept, after, strict=True))


def test_threads_do_not_mix_their_batches(workers: CudaGraphRunner, reference: ResNetEngine) -> None:
    """More threads than workers, batches of all sizes; and the warm-up of a larger one in between."""
    batches = [items(1 + seed % 7, seed=seed) for seed in range(24)]
    expected = [reference.classify(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        larger = threads.submit(workers.warm_up, 6)
        found = list(threads.map(workers, batches))
        larger.result()
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("class_id", [-1, 6, 1000])
def test_a_class_that_there_is_none_of_costs_one_batch(workers: CudaGraphRunner, class_id: int) -> None:
    """On a GPU it would end the process's use of it; here it is an error before anything is sent."""
    with pytest.raises(IndexError, match="is not one of 6"):
        workers([ClassifyItem(items(1)[0].pixels, 1, class_id)])
    assert len(workers(items(3))) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_backbone_computes_what_torchvision_does(weights: WeightsConfig, dtype: torch.dtype) -> None:
    """In every precision; the tolerance is what tells rounding from a broken kernel."""
    model, card = load_model(weights)
    with torch.inference_mode():
        assert largest_error(backbone_on_cpu(weights, dtype), fold(model), card.transform) < TOLERANCE[dtype] / 2


@pytest.mark.parametrize("fused", FUSED[1:], ids="-".join)
def test_fused_kernels_are_called_as_torch_declares(
    weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch, fused: Collection[str]
) -> None:
    """The fused convolutions exist on GPUs only: here plain ones with the same arguments stand in."""

    def relu(x: Tensor, w: Tensor, bias: Tensor, stride: tuple, padding: tuple, dilation: tuple, groups: int) -> Tensor:
        return functional.conv2d(x, w, bias, stride, padding, dilation, groups).relu()

    def add_relu(x: Tensor, w: Tensor, z: Tensor, alpha: float, bias: Tensor, *rest: tuple) -> Tensor:
        return (functional.conv2d(x, w, bias, *rest) + alpha * z).relu()

    for name, stand_in in (("cudnn_convolution_relu", relu), ("cudnn_convolution_add_relu", add_relu)):
        declared = [a.name for a in getattr(torch.ops.aten, name).default._schema.arguments]
        assert len(declared) == (7 if stand_in is relu else 9)
        assert declared[-4:] == ["stride", "padding", "dilation", "groups"]
        monkeypatch.setattr(torch, name, stand_in)
    model, card = load_model(weights)
    with torch.inference_mode():
        assert largest_error(backbone_on_cpu(weights, fused=fused), fold(model), card.transform) < 1e-5


def test_our_kernels_fit_the_network(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run on GPUs only: here something with the same results stands in, a fourth channel included."""

    class OnCpu:
        def __init__(self, dtype: torch.dtype) -> None:
            assert dtype == torch.float32

        def normalize(self, pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            planes = pixels.permute(0, 3, 1, 2) * scale + shift
            return functional.pad(planes, (0, 0, 0, 0, 0, 1)).contiguous(memory_format=torch.channels_last)

        def max_pool(self, x: Tensor) -> Tensor:
            return functional.max_pool2d(x, 3, 2, 1)

    monkeypatch.setattr(cuda, "Kernels", OnCpu)
    model, card = load_model(weights)
    with torch.inference_mode():
        assert largest_error(backbone_on_cpu(weights, fused=[OWN]), fold(model), card.transform) < 1e-5


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("dtype", CONVERSION, ids=str)
def test_our_kernels_compile(dtype: torch.dtype, architecture: str) -> None:
    """Which needs no GPU."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="this PyTorch is built without CUDA", exc_type=ImportError)
    binary = compiled(dtype, architecture)
    assert binary.startswith(b"\x7fELF")
    assert b"normalize" in binary
    assert b"max_pool" in binary


def test_a_compiler_that_refuses_is_heard() -> None:
    """The engine does without these kernels then, and says why."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="this PyTorch is built without CUDA", exc_type=ImportError)
    with pytest.raises(RuntimeError, match=r"requires \.target sm_80 or higher"):
        compiled(torch.bfloat16, "sm_75")


@needs_gpu
@pytest.mark.parametrize("side", [7, 48, 112, 224])
@pytest.mark.parametrize("dtype", CONVERSION, ids=str)
def test_our_kernels_compute_what_torch_does(dtype: torch.dtype, side: int) -> None:
    random = torch.Generator("cuda").manual_seed(side)
    kernels = Kernels(dtype)
    x = torch.randn(5, 64, side, side, device="cuda", generator=random).relu().to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    x[0, 3, side // 2, side // 2] = torch.nan
    torch.testing.assert_close(kernels.max_pool(x), functional.max_pool2d(x, 3, 2, 1), rtol=0, atol=0, equal_nan=True)
    pixels = torch.randint(0, 256, (5, side, side, 3), device="cuda", generator=random, dtype=torch.uint8)
    scale, shift = (torch.randn(1, 3, 1, 1, device="cuda", generator=random) for _ in range(2))
    planes = kernels.normalize(pixels, scale, shift)
    expected = pixels.permute(0, 3, 1, 2) * scale + shift
    torch.testing.assert_close(planes[:, :3].float(), expected, rtol=0.01, atol=0.01)
    assert (planes[:, 3] == 0).all()


def test_the_model_is_left_as_it_is(weights: WeightsConfig) -> None:
    """The CPU's reference and the GPU's weights come from the same model."""
    model, card = load_model(weights)
    before = {name: value.clone() for name, value in fold(model).state_dict().items()}
    CudaRuntime(model, card.transform, torch.float16, CPU)
    assert all(
        (value == before[name]).all() and value.dtype == torch.float32 for name, value in model.state_dict().items()
    )


def test_unfolded_models_are_refused(weights: WeightsConfig) -> None:
    model, card = load_model(weights)
    with pytest.raises(ValueError, match="fold the batch norms first"):
        CudaRuntime(model, card.transform, torch.float32, CPU)


@needs_no_gpu
@pytest.mark.parametrize("precision", ["auto", "fp16", "bf16", "fp32"])
def test_no_gpu_is_one_sentence(weights: WeightsConfig, precision: str) -> None:
    with pytest.raises(EngineError, match="engine cuda: PyTorch finds no NVIDIA GPU on this machine"):
        ResNetEngine(*load_model(weights), EngineConfig.model_validate({"runtime": "cuda", "precision": precision}))


def test_int8_is_for_cpus(weights: WeightsConfig) -> None:
    with pytest.raises(EngineError, match="precision int8 runs on CPUs only"):
        ResNetEngine(*load_model(weights), EngineConfig(runtime="cuda", precision="int8"))


@pytest.mark.parametrize(("precision", "taken"), [("auto", True), ("fp16", True), ("int8", False)])
def test_auto_takes_the_gpu(
    weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch, precision: str, taken: bool
) -> None:
    """Where there is one, unless int8 is asked for."""
    asked: list[str] = []

    def on_gpu(model: object, transform: object, precision: str) -> CudaRuntime:
        asked.append(precision)
        return backbone_on_cpu(weights)

    monkeypatch.setattr(select, "gpu_found", lambda: True)
    monkeypatch.setattr(select, "on_gpu", on_gpu)
    with contextlib.suppress(EngineError):  # int8 needs a calibration
        backbone = select.build(*load_model(weights), EngineConfig.model_validate({"precision": precision}), 1)
        assert (backbone.name == "cuda") == taken
    assert asked == [precision] * taken


def test_onnx_is_not_needed() -> None:
    """A machine with a GPU needs neither onnx nor onnxruntime nor MNN."""
    program = (
        "import sys\n"
        "for name in ('onnx', 'onnxruntime', 'MNN', '_tools', 'ray', 'fastapi'): sys.modules[name] = None\n"
        "from serve_app.inference.engine import ResNetEngine\n"
        "from serve_app.config import EngineConfig, WeightsConfig\n"
        "from serve_app.inference.weights import load_model\n"
        "from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner\n"
        "print('RAN')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "RAN"


def test_the_arithmetic_of_the_limits() -> None:
    """ResNet-18 is known to take 1.814 billion multiplications; a batch reads its weights once."""
    image = roofline.summary()
    assert image["gmacs_per_image"] == pytest.approx(1.814, abs=0.001)
    one, many = (roofline.limits(n, 790e12, 4.3e12) for n in (1, 100))
    assert many["arithmetic_ms"] == pytest.approx(100 * one["arithmetic_ms"])
    assert many["memory_ms"] < 60 * one["memory_ms"]
    assert many["layer_by_layer_ms"] >= max(many["arithmetic_ms"], many["memory_ms"])


def test_the_script_runs_without_a_gpu(tmp_path: Path) -> None:
    """Every section of it, tiny, with a CPU in the GPU's place; none may fail. Other tests start the whole service."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--cpu-smoke", "--out", str(tmp_path / "gpu.json")]
    command.append("--parts=checks,speed,pipeline,compiled")
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert len(sections) > 20
    assert {name: found for name, found in sections.items() if "error" in found or "skipped" in found} == {}
    assert all(found.get("ok", True) for found in sections.values())
    assert (tmp_path / "gpu.md").read_text().endswith("Nothing.\n")


@needs_no_gpu
def test_the_script_says_that_there_is_no_gpu() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: PyTorch finds no NVIDIA GPU here")


@needs_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.01), ("bf16", 0.08)])
def test_the_gpu_gives_the_cpus_answers(
    weights: WeightsConfig, reference: ResNetEngine, precision: str, tolerance: float
) -> None:
    """In every size, from two threads at a time, with maps."""
    spec = EngineConfig.model_validate({"runtime": "cuda", "precision": precision})
    engine = ResNetEngine(*load_model(weights), spec)
    engine.warm_up(16)
    assert (engine.runtime, engine.workers) == ("cuda", 2)
    batches = [items(1 + seed % 20, seed=seed) for seed in range(60)]
    with ThreadPoolExecutor(engine.workers) as threads:
        found = list(threads.map(engine.classify, batches))
    for batch, answers in zip(batches, found, strict=True):
        for one, other in zip(answers, reference.classify(batch), strict=True):
            scores = dict(zip(other.class_ids, other.scores, strict=True))
            gap = [abs(score - scores[c]) for c, score in zip(one.class_ids, one.scores, strict=True) if c in scores]
            assert max(gap, default=0.0) < tolerance
            if one.activation_map:
                drawn = one.activation_map
                assert abs(drawn.values.mean() + drawn.bias - drawn.logit) < 1e-3


@needs_gpu
def test_nothing_is_allocated_under_load(weights: WeightsConfig) -> None:
    engine = ResNetEngine(*load_model(weights), EngineConfig(runtime="cuda"))
    engine.warm_up(16)
    engine.classify(items(16))
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for seed in range(50):
        engine.classify(items(1 + seed % 16, seed=seed))
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before
