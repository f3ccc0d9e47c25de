"""winograd/: the same features as torch, for every shape, thread count and vector width."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from serve_app.inference.network import Network, fold
from serve_app.inference.runtimes.folding import fold as fold_model
from serve_app.inference.runtimes.torch import TorchRuntime
from serve_app.inference.runtimes.winograd import kernels, runtime
from serve_app.inference.torch_model import to_arrays
from serve_app.model_card import ImageTransform
from tests.support.paths import ROOT

TRANSFORM = ImageTransform(resize_px=40, crop_px=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))

pytestmark = pytest.mark.skipif(not kernels.SUPPORTED, reason="this CPU has neither AVX2 nor AVX-512")


@cache
def reference(crop_px: int) -> tuple[Network, ImageTransform, np.ndarray, np.ndarray]:
    """Return a network, its transform, more images than run in one pass, and torch's features of them."""
    torch.manual_seed(1)
    model, transform = resnet18().eval(), TRANSFORM.model_copy(update={"crop_px": crop_px})
    network = fold(to_arrays(model))
    pixels = np.random.default_rng(1).integers(0, 256, (runtime.IMAGES_PER_PASS + 3, crop_px, crop_px, 3), np.uint8)
    return network, transform, pixels, TorchRuntime(fold_model(model), transform, 1)(pixels)


def compare_with_torch(crop_px: int, threads: int) -> None:
    """Fail if two passes, almost two passes or a small batch get other features than torch's."""
    network, transform, pixels, expected = reference(crop_px)
    winograd = runtime.WinogradRuntime(runtime.PackedNetwork(network, transform), threads)
    for part in (slice(None), slice(1), slice(2, 5)):
        features = winograd(pixels[part])
        assert features.shape == expected[part].shape
        np.testing.assert_allclose(features, expected[part], atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("crop_px", [32, 97, 150, 224])
def test_features_are_torchs(crop_px: int, threads: int) -> None:
    """Feature maps may be smaller than a tile, a multiple of it, or in between."""
    compare_with_torch(crop_px, threads)


@pytest.fixture(scope="module")
def compiled_anew() -> dict[str, Any]:
    """Compare with torch in a process that compiles the kernels anew, for a CPU without AVX-512; return its facts."""
    program = (
        "import json\n"
        "from llvmlite import binding\n"
        "features = binding.get_host_cpu_features()\n"
        "features['avx512f'] = False\n"
        "binding.get_host_cpu_features = lambda: features\n"
        "from serve_app.inference.runtimes.winograd import kernels\n"
        "from tests.unit.inference.runtimes.test_winograd import compare_with_torch\n"
        "for threads in (1, 2):\n"
        "    compare_with_torch(96, threads)\n"
        "print(json.dumps({'floats': kernels.VECTOR_FLOATS, 'cache': kernels.run.stats.cache_path}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}
    process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    facts: dict[str, Any] = json.loads(process.stdout)
    return facts


def test_features_are_torchs_with_256_bits(compiled_anew: dict[str, Any]) -> None:
    """The code for CPUs without AVX-512 computes the same: half the vector, fewer rows, other panels."""
    assert compiled_anew["floats"] == 8


def test_kernels_compile_without_a_folder_for_the_cache(compiled_anew: dict[str, Any]) -> None:
    """In a read-only container whose user has no home, each process compiles the kernels anew."""
    assert compiled_anew["cache"] is None


def test_broken_weights_stay_visible() -> None:
    """NaN stays NaN, as in torch: no ReLU turns it into zero."""
    model = resnet18().eval()
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0, 0, 0] = torch.nan
    winograd = runtime.WinogradRuntime(runtime.PackedNetwork(fold(to_arrays(model)), TRANSFORM), 1)
    assert np.isnan(winograd(np.zeros((1, 32, 32, 3), np.uint8))).all()
