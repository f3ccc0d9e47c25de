"""Our kernels, amx/ and winograd/: the same features as torch, for every shape, thread count and vector width."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from serve_app.inference.network import Network, fold
from serve_app.inference.runtimes.amx import runtime as amx
from serve_app.inference.runtimes.base import Runtime
from serve_app.inference.runtimes.compiled import llvm
from serve_app.inference.runtimes.compiled.llvm import jit_cached
from serve_app.inference.runtimes.compiled.plan import IMAGES_PER_PASS
from serve_app.inference.runtimes.folding import fold as fold_model
from serve_app.inference.runtimes.torch import TorchRuntime
from serve_app.inference.runtimes.winograd import kernels, runtime
from serve_app.inference.torch_model import to_arrays
from serve_app.model_card import ImageTransform
from tests.support.paths import ROOT
from tests.support.runtimes import AMX, needs_amx

TRANSFORM = ImageTransform(resize_px=40, crop_px=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
TOLERANCES = {
    "winograd": 1e-5,
    "winograd int16": 2e-3,
    "amx": 5e-5,
    "amx bf16": 0.02,
}  # of a feature, relative to the largest one
pytestmark = pytest.mark.skipif(not kernels.SUPPORTED, reason="this CPU has neither AVX2 nor AVX-512")


def build(name: str, network: Network, transform: ImageTransform, threads: int) -> Runtime:
    if name in ("amx", "amx bf16"):
        return amx.AmxRuntime(amx.PackedNetwork(network, transform, bfloat16=name == "amx bf16"), threads)
    return runtime.WinogradRuntime(runtime.PackedNetwork(network, transform, name == "winograd int16"), threads)


@cache
def reference(crop_px: int) -> tuple[Network, ImageTransform, np.ndarray, np.ndarray]:
    """Return a network, its transform, more images than run in one pass, and torch's features of them."""
    torch.manual_seed(1)
    model, transform = resnet18().eval(), TRANSFORM.model_copy(update={"crop_px": crop_px})
    network = fold(to_arrays(model))
    pixels = np.random.default_rng(1).integers(0, 256, (IMAGES_PER_PASS + 3, crop_px, crop_px, 3), np.uint8)
    return network, transform, pixels, TorchRuntime(fold_model(model), transform, 1)(pixels)


def compare_with_torch(name: str, crop_px: int, threads: int) -> None:
    """Fail if two passes, almost two passes or a small batch get other features than torch's."""
    network, transform, pixels, expected = reference(crop_px)
    compiled = build(name, network, transform, threads)
    for part in (slice(None), slice(1), slice(2, 5), slice(None)):
        features = compiled(pixels[part])
        assert features.shape == expected[part].shape
        np.testing.assert_allclose(features, expected[part], atol=TOLERANCES[name] * float(expected.max()))


@pytest.mark.parametrize("name", ["winograd", "winograd int16", AMX, pytest.param("amx bf16", marks=needs_amx)])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("crop_px", [32, 97, 150, 224])
def test_features_are_torchs(name: str, crop_px: int, threads: int) -> None:
    """Feature maps may be smaller than a tile, a multiple of it, or in between."""
    compare_with_torch(name, crop_px, threads)


def test_int16_sums_never_overflow() -> None:
    """A window and a filter that are parallel give the largest sum that the scales allow."""
    model = resnet18().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    white = np.full((1, 96, 96, 3), 255, np.uint8)
    transform = TRANSFORM.model_copy(update={"crop_px": 96})
    features = build("winograd int16", fold(to_arrays(model)), transform, 1)(white)
    expected = TorchRuntime(fold_model(model), transform, 1)(white)
    np.testing.assert_allclose(features, expected, atol=TOLERANCES["winograd int16"] * float(expected.max()))


@cache
def compiled_without(feature: str) -> dict[str, Any]:
    """Compare with torch in a process that compiles for a CPU without a feature; return facts of that process."""
    program = (
        "import json\n"
        "from llvmlite import binding\n"
        "features = binding.get_host_cpu_features()\n"
        f"features['{feature}'] = False\n"
        "binding.get_host_cpu_features = lambda: features\n"
        "from serve_app.inference.runtimes.compiled import llvm\n"
        "from serve_app.inference.runtimes.winograd import kernels\n"
        "from tests.unit.inference.runtimes.test_compiled import compare_with_torch\n"
        "for name in ('winograd', 'winograd int16'):\n"
        "    for threads in (1, 2):\n"
        "        compare_with_torch(name, 97, threads)\n"
        "print(json.dumps({'floats': llvm.VECTOR_FLOATS, 'cache': kernels.run.stats.cache_path}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}
    process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    facts: dict[str, Any] = json.loads(process.stdout)
    return facts


def test_features_are_torchs_with_256_bits() -> None:
    """The code for CPUs without AVX-512 computes the same: half the vector, fewer rows, other panels."""
    assert compiled_without("avx512f")["floats"] == 8


@pytest.mark.skipif(not llvm.AVX512, reason="this CPU has no AVX-512")
def test_features_are_torchs_without_vnni() -> None:
    """Two instructions then multiply and add int16."""
    assert compiled_without("avx512vnni")["floats"] == 16


def test_kernels_compile_without_a_folder_for_the_cache() -> None:
    """In a read-only container whose user has no home, each process compiles the kernels anew."""
    assert compiled_without("avx512f")["cache"] is None


@pytest.mark.parametrize("name", ["winograd", "winograd int16", AMX])
@pytest.mark.parametrize("layer", ["conv1", "layer1.0.conv1", "layer2.0.conv1"])
def test_broken_weights_stay_visible(name: str, layer: str) -> None:
    """NaN stays NaN, as in torch: no ReLU turns it into zero. Stem, Winograd and direct layers have their own code."""
    model = resnet18().eval()
    with torch.no_grad():
        model.get_submodule(layer).weight[0, 0, 0, 0] = torch.nan
    broken = build(name, fold(to_arrays(model)), TRANSFORM, 1)
    assert np.isnan(broken(np.zeros((1, 32, 32, 3), np.uint8))).all()


def test_a_change_beside_a_function_discards_its_machine_code(tmp_path: Path) -> None:
    """Numba would look at the function's own file only."""

    def name_of_code() -> str:
        spec = importlib.util.spec_from_file_location("cached", tmp_path / "cached.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return str(jit_cached(module.function).stats.cache_path) + module.function.__qualname__

    (tmp_path / "cached.py").write_text("def function():\n    return 1\n")
    (tmp_path / "beside.py").write_text("FACTOR = 1\n")
    first = name_of_code()
    assert name_of_code() == first
    (tmp_path / "beside.py").write_text("FACTOR = 2\n")
    assert name_of_code() != first
