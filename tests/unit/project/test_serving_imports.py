"""What a replica has in memory: libraries that it does not need take hundreds of MB and seconds of each start."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from serve_app.config import WeightsConfig
from tests.support.paths import ROOT

NEVER = {"duckdb", "onnx", "ray.data", "ray.train", "serve_app.training", "streamlit"}
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
CLASSIFY = """
import serve_app.deployments.classifier
from serve_app.config import EngineConfig, WeightsConfig
from serve_app.inference.hot_swap import HotSwapModel
model = HotSwapModel(WeightsConfig.model_validate_json(sys.argv[1]), EngineConfig(runtime=sys.argv[2]), 1)
assert len(model.classify([model.engine.probe])) == 1
"""


def loaded(program: str, *arguments: str) -> set[str]:
    """Run a program; return the modules that it has loaded, and the packages that contain them."""
    lines = f"import json, sys\n{program}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", lines, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(modules)


@pytest.mark.parametrize("program", [INGRESS, PREPROCESS], ids=("ingress", "preprocessor"))
def test_only_the_model_pays_for_torch(program: str) -> None:
    """Neither what answers HTTP nor what decodes images loads torch, ONNX, Ray Data, DuckDB or training."""
    assert loaded(program) & (NEVER | TORCH | {"onnxruntime"}) == set()


def test_the_model_loads_its_own_runtime_only(weights: WeightsConfig) -> None:
    """With our kernels, no ONNX Runtime, and no ONNX to write a graph for it."""
    pytest.importorskip("serve_app.inference.runtimes.winograd.kernels")
    assert loaded(CLASSIFY, weights.model_dump_json(), "winograd") & (NEVER | {"onnxruntime"}) == set()
