"""cuda/runtime.py and cuda/kernels.py: a CPU stands in for the GPU, except in the tests marked ``needs_gpu``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.errors import EngineError
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.runtimes.cuda import runtime as cuda
from serve_app.inference.runtimes.cuda.kernels import PTX_CONVERSION, Kernels, compile_kernels
from serve_app.inference.runtimes.cuda.runtime import (
    CUSTOM_KERNELS,
    FUSION_LEVELS,
    TOLERANCE,
    CudaRuntime,
    largest_error,
)
from serve_app.inference.runtimes.folding import fold
from serve_app.inference.runtimes.gpu import gpu_available
from serve_app.inference.torch_model import load_model
from serve_app.inference.weights import load_weights
from tests.support.cuda_on_cpu import CPU, cuda_runtime_on_cpu
from tests.support.paths import ROOT

needs_gpu = pytest.mark.skipif(not gpu_available(), reason="there is no NVIDIA GPU on this machine")
needs_no_gpu = pytest.mark.skipif(gpu_available(), reason="there is an NVIDIA GPU on this machine")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_features_are_torchs(weights: WeightsConfig, dtype: torch.dtype) -> None:
    """Rounding in any precision stays below half of the tolerance that reveals a broken kernel."""
    model, card = load_model(weights)
    with torch.inference_mode():
        assert largest_error(cuda_runtime_on_cpu(weights, dtype), fold(model), card.transform) < TOLERANCE[dtype] / 2


@pytest.mark.parametrize("fused", FUSION_LEVELS[1:], ids="-".join)
def test_fused_kernels_are_called_as_torch_declares(
    weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch, fused: Collection[str]
) -> None:
    """Plain convolutions with the same arguments replace the fused ones, which only GPUs have."""

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
        assert largest_error(cuda_runtime_on_cpu(weights, fused=fused), fold(model), card.transform) < 1e-5


def test_custom_kernels_fit_the_network(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network takes the fourth channel that the custom normalization writes."""

    class KernelsOnCpu:
        def __init__(self, dtype: torch.dtype) -> None:
            assert dtype == torch.float32

        def normalize(self, pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            planes = pixels.permute(0, 3, 1, 2) * scale + shift
            return functional.pad(planes, (0, 0, 0, 0, 0, 1)).contiguous(memory_format=torch.channels_last)

        def max_pool(self, x: Tensor) -> Tensor:
            return functional.max_pool2d(x, 3, 2, 1)

    monkeypatch.setattr(cuda, "Kernels", KernelsOnCpu)
    model, card = load_model(weights)
    with torch.inference_mode():
        runtime = cuda_runtime_on_cpu(weights, fused=[CUSTOM_KERNELS])
        assert largest_error(runtime, fold(model), card.transform) < 1e-5


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("dtype", PTX_CONVERSION, ids=str)
def test_custom_kernels_compile(dtype: torch.dtype, architecture: str) -> None:
    """NVRTC compiles both kernels for three generations of GPUs; this needs no GPU."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="this PyTorch is built without CUDA", exc_type=ImportError)
    cubin = compile_kernels(dtype, architecture)
    assert cubin.startswith(b"\x7fELF")
    assert b"normalize" in cubin
    assert b"max_pool" in cubin


def test_a_compiler_error_is_reported() -> None:
    """The error holds the compiler's log; the runtime then uses PyTorch's kernels."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="this PyTorch is built without CUDA", exc_type=ImportError)
    with pytest.raises(RuntimeError, match=r"requires \.target sm_80 or higher"):
        compile_kernels(torch.bfloat16, "sm_75")


@needs_gpu
@pytest.mark.parametrize("side", [7, 48, 112, 224])
@pytest.mark.parametrize("dtype", PTX_CONVERSION, ids=str)
def test_custom_kernels_compute_torchs_results(dtype: torch.dtype, side: int) -> None:
    """Max-pool is exact, NaN included; normalization is exact up to the rounding of its type."""
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


def test_the_model_is_not_changed(weights: WeightsConfig) -> None:
    """The GPU's weights are copies, so the CPU's reference uses the same model."""
    model, card = load_model(weights)
    before = {name: value.clone() for name, value in fold(model).state_dict().items()}
    CudaRuntime(model, card.transform, torch.float16, CPU)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_unfolded_models_are_refused(weights: WeightsConfig) -> None:
    """A model never runs without its batch norms' effect."""
    model, card = load_model(weights)
    with pytest.raises(ValueError, match="fold the batch norms first"):
        CudaRuntime(model, card.transform, torch.float32, CPU)


@needs_no_gpu
@pytest.mark.parametrize("precision", ["auto", "fp16", "bf16", "fp32"])
def test_no_gpu_is_one_sentence(weights: WeightsConfig, precision: str) -> None:
    """``runtime: cuda`` never falls back to the CPU."""
    with pytest.raises(EngineError, match="engine cuda: PyTorch finds no NVIDIA GPU on this machine"):
        ResNetEngine(*load_weights(weights), EngineConfig.model_validate({"runtime": "cuda", "precision": precision}))


def test_int8_is_for_cpus(weights: WeightsConfig) -> None:
    """``runtime: cuda`` refuses int8."""
    with pytest.raises(EngineError, match="precision int8 runs on CPUs only"):
        ResNetEngine(*load_weights(weights), EngineConfig(runtime="cuda", precision="int8"))


def test_onnx_is_not_needed() -> None:
    """A machine with a GPU needs neither onnx nor onnxruntime."""
    program = (
        "import sys\n"
        "for name in ('onnx', 'onnxruntime', 'ray', 'fastapi'): sys.modules[name] = None\n"
        "from serve_app.inference.engine import ResNetEngine\n"
        "from serve_app.config import EngineConfig, WeightsConfig\n"
        "from serve_app.inference.weights import load_weights\n"
        "from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner\n"
        "print('RAN')\n"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "RAN"
