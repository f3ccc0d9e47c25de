"""What a replica has in memory: libraries that it does not need take hundreds of MB and seconds of each start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.config import WeightsConfig
from serve_app.paths import CACHE_VARIABLE
from tests.support.paths import ROOT
from tests.support.runtimes import AMX
from tests.support.weights import publish_random

NEVER = {"duckdb", "onnx", "ray.data", "ray.train", "serve_app.training", "sklearn", "streamlit"}
TORCH = {"torch", "torchvision"}
PREPROCESS = """
from serve_app.deployments.preprocessor import preprocess
from serve_app.messages import ClassifyRequest
from serve_app.model_card import ImageTransform
from tests.support.photos import make_photo
transform = ImageTransform(resize_px=256, crop_px=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
assert preprocess(make_photo(), transform, 10**6)[0].shape == (224, 224, 3)
"""
INGRESS = """
from serve_app.deployments import ingress
from serve_app.http.openapi import PROBLEMS
assert ingress.create_app and PROBLEMS
"""
TEACH = """
from serve_app.deployments import teacher
assert teacher.fit
"""
CLASSIFY = """
from serve_app.deployments.classifier import Classifier
from serve_app.config import ClassifierConfig, EngineConfig, WeightsConfig
from serve_app.inference.hot_swap import HotSwapModel
first, second = (WeightsConfig.model_validate_json(spec) for spec in sys.argv[1:3])
model = HotSwapModel(first, EngineConfig(runtime=sys.argv[3], precision="fp32"), 2)
request = dataclasses.replace(model.engine.probe, explain="top", features="pooled")
assert model.classify([request])[0].activation_map
model.change(ClassifierConfig(weights=second))
assert model.classify([request])[0].model.version == "second"
"""


INT8 = """
from serve_app.config import EngineConfig, WeightsConfig
from serve_app.inference.hot_swap import HotSwapModel
model = HotSwapModel(WeightsConfig(source="demo"), EngineConfig(precision="int8"), 1)
assert model.engine.runtime == "onnxruntime int8"
"""


def loaded(program: str, *arguments: str) -> set[str]:
    """Run a program; return the modules that it has loaded, and the packages that contain them."""
    lines = f"import dataclasses, json, sys\n{program}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", lines, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(modules)


@pytest.mark.parametrize("program", [INGRESS, PREPROCESS, TEACH], ids=("ingress", "preprocessor", "teacher"))
def test_no_other_stage_loads_a_model_library(program: str) -> None:
    """What answers HTTP, decodes and waits to fit loads no torch, ONNX, Ray Data, DuckDB, scikit-learn or training."""
    assert loaded(program) & (NEVER | TORCH | {"onnxruntime", "numba"}) == set()


@pytest.mark.parametrize("runtime", ["auto", "winograd", AMX])
def test_the_model_loads_its_own_runtime_only(
    weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    """No torch, although `auto` times it, and none after a swap; with our kernels no ONNX Runtime either."""
    pytest.importorskip("serve_app.inference.runtimes.winograd.kernels")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    second = publish_random(tmp_path, seed=1, version="second")
    modules = loaded(CLASSIFY, weights.model_dump_json(), second.model_dump_json(), runtime)
    assert modules & TORCH == set()
    if runtime != "auto":
        assert modules & (NEVER | {"onnxruntime"}) == set()


def test_int8_needs_no_torch() -> None:
    """ONNX Runtime runs it."""
    modules = loaded(INT8)
    assert "onnxruntime" in modules
    assert modules & TORCH == set()
