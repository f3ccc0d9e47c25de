"""Embeddings and feature maps: torchvision's numbers from every runtime, out of the batch that classifies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from frontend.components.samples import load_samples
from serve_app.config import EngineConfig, WeightsConfig
from serve_app.errors import UnclassifiableImageError
from serve_app.inference import engine as engine_module
from serve_app.inference.card import load_card
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.head import Head, copy_features
from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner
from serve_app.inference.torch_model import load_model
from serve_app.inference.weights import load_weights
from serve_app.messages import ClassifyRequest, ClassifyResult, Features
from serve_app.preprocessing.transform import preprocess
from tests.support.cuda_on_cpu import CpuStream, cuda_runtime_on_cpu
from tests.support.runtimes import CPU_RUNTIMES, needs_amx

Classify = Callable[[Sequence[ClassifyRequest[np.ndarray]]], Sequence[ClassifyResult]]
DEMO = WeightsConfig(source="demo")
# Largest L2 norm of an embedding's error over that of the embedding; docs/api.md states these tolerances.
TOLERANCES = {
    "torch": 1e-5,
    "onnxruntime": 1e-5,
    "winograd": 1e-5,
    "amx": 1e-4,
    "int16": 0.005,
    "bf16": 0.02,
    "int8": 0.2,
}
CUDA_TOLERANCES = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    """The page's six sample photos, as the demo model sees them."""
    card = load_card(DEMO)
    return [preprocess(each.photo.data, card.transform, 10**7).pixels for each in load_samples()]


@pytest.fixture(scope="module")
def maps(crops: list[np.ndarray]) -> Tensor:
    """Plain torchvision's last feature maps of those photos."""
    return torchvision_maps(DEMO, crops)


def torchvision_maps(weights: WeightsConfig, crops: list[np.ndarray]) -> Tensor:
    model, card = load_model(weights)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.transform.mean, card.transform.std))
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        found: Tensor = nn.Sequential(*list(model.children())[:-2])((pixels - mean) / std)
        return found


def requests(features: list[Features], seed: int = 0) -> list[ClassifyRequest[np.ndarray]]:
    """Random images for the weights of six classes."""
    random = np.random.default_rng(seed)
    return [ClassifyRequest(random.integers(0, 256, (96, 96, 3), np.uint8), 2, features=each) for each in features]


def graph_runner(weights: WeightsConfig, dtype: torch.dtype = torch.float32) -> CudaGraphRunner:
    """The GPU's code on a CPU."""
    arrays, card = load_weights(weights)
    runtime = cuda_runtime_on_cpu(weights, dtype)
    return CudaGraphRunner(runtime, Head(arrays, card), card.transform.crop_px, CpuStream, benchmark=False)  # type: ignore[arg-type] # as test_cuda_graphs.py


def relative(actual: np.ndarray | None, expected: np.ndarray) -> float:
    """Return the L2 norm of the error over that of what is expected."""
    assert actual is not None
    assert (actual.shape, actual.dtype, actual.flags.c_contiguous) == (expected.shape, np.float32, True)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    "runtime",
    [*CPU_RUNTIMES, "int16", pytest.param("bf16", marks=needs_amx), "int8"],
)
def test_embeddings_are_torchvisions(runtime: str, crops: list[np.ndarray], maps: Tensor) -> None:
    """On real photos, the embedding of each runtime is within the tolerance that docs/api.md states."""
    config = {"precision" if runtime in ("int8", "int16", "bf16") else "runtime": runtime}
    engine = ResNetEngine(*load_weights(DEMO), EngineConfig.model_validate(config))
    results = engine.classify([ClassifyRequest(crop, 1, features="pooled") for crop in crops])
    for result, expected in zip(results, maps.mean((2, 3)).numpy(), strict=True):
        assert relative(result.features, expected) <= TOLERANCES[runtime]


@pytest.mark.parametrize("dtype", CUDA_TOLERANCES)
def test_the_gpus_code_gives_torchvisions_embeddings(dtype: torch.dtype, crops: list[np.ndarray], maps: Tensor) -> None:
    """The same on a CPU that stands in for the GPU, in each precision."""
    results = graph_runner(DEMO, dtype)([ClassifyRequest(crop, 1, features="pooled") for crop in crops[:2]])
    for result, expected in zip(results, maps.mean((2, 3)).numpy()[:2], strict=True):
        assert relative(result.features, expected) <= CUDA_TOLERANCES[dtype]


@pytest.fixture(scope="module", params=[*CPU_RUNTIMES, "cuda"])
def classify(weights: WeightsConfig, request: pytest.FixtureRequest) -> Classify:
    """The weights of six classes on each runtime."""
    if request.param == "cuda":
        runner = graph_runner(weights)
        runner.warm_up(4)
        return runner
    return ResNetEngine(*load_weights(weights), EngineConfig(runtime=request.param)).classify


def test_each_image_of_a_batch_gets_what_it_asks_for(classify: Classify, weights: WeightsConfig) -> None:
    """None, the embedding and the map in one batch; they leave the classes as they are without them."""
    batch = requests([None, "pooled", "map", "pooled", "map"])
    expected = torchvision_maps(weights, [each.image for each in batch]).numpy()
    results = classify(batch)
    assert results[0].features is None
    for i, result in enumerate(results[1:], 1):
        assert relative(result.features, expected[i] if i in (2, 4) else expected[i].mean((1, 2))) < 1e-4
    plain = classify([dataclasses.replace(each, features=None) for each in batch])
    assert [each.class_ids for each in results] == [each.class_ids for each in plain]
    assert [each.scores for each in results] == [each.scores for each in plain]


def test_the_map_and_the_last_layer_give_the_logit(classify: Classify, weights: WeightsConfig) -> None:
    """A class's weights times the map's mean, plus its bias, is the logit of its activation map."""
    layer = load_model(weights)[0].fc
    (request,) = requests(["map"])
    (result,) = classify([dataclasses.replace(request, explain=3)])
    assert result.features is not None
    assert result.activation_map is not None
    logit = layer.weight[3].detach().numpy() @ result.features.mean((1, 2)) + layer.bias[3].item()
    assert logit == pytest.approx(result.activation_map.logit, abs=1e-3)


def test_later_batches_leave_features_as_they_are(classify: Classify) -> None:
    """No result is a view of a buffer that is used again, or keeps the whole batch in memory."""
    results = classify(requests(["pooled", "map"] * 2))
    before = [result.features.copy() for result in results if result.features is not None]
    for seed in range(1, 5):
        classify(requests(["map", "pooled"] * 2, seed))
    for result, copy in zip(results, before, strict=True):
        assert result.features is not None
        assert result.features.base is None
        np.testing.assert_array_equal(result.features, copy)


@pytest.mark.parametrize("features", ["pooled", "map"])
def test_features_that_are_no_numbers_are_never_delivered(
    weights: WeightsConfig, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy from the device that went wrong fails its image even though the scores are finite."""

    def damaged(*arguments: Any) -> dict[int, np.ndarray]:
        copies = copy_features(*arguments)
        for copy in copies.values():
            copy[-1] = math.nan
        return copies

    engine = ResNetEngine(*load_weights(weights), EngineConfig(runtime="torch"))
    monkeypatch.setattr(engine_module, "copy_features", damaged)
    assert len(engine.classify(requests([None]))) == 1
    with pytest.raises(UnclassifiableImageError, match="not finite"):
        engine.classify(requests([features]))
