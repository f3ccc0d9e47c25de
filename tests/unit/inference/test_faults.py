"""Scores that are not finite numbers, and devices that compute wrong results: whose fault, and what it costs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from serve_app.batch.worker import classify_each
from serve_app.batcher import BatchRecord, MicroBatcher, ThreadRunner
from serve_app.config import BatchConfig, ClassifierConfig, EngineConfig, WeightsConfig
from serve_app.errors import EngineError, ModelFailedError, UnclassifiableImageError
from serve_app.inference.card import load_card
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.hot_swap import HotSwapModel
from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner
from serve_app.inference.torch_model import publish
from serve_app.inference.weights import load_weights
from serve_app.messages import ClassifyRequest, ClassifyResult
from tests.support.cuda_on_cpu import CpuStream, cuda_runtime_on_cpu
from tests.support.runtimes import AMX

ONNX = EngineConfig(runtime="onnxruntime")
NAN, INF = math.nan, math.inf
Damage = Callable[[np.ndarray, np.ndarray], np.ndarray]


class FaultyRuntime:
    """A runtime whose features a test changes from a given batch on.

    Attributes:
        damage: Takes the pixels and features of a batch and returns other features; None leaves them.
    """

    def __init__(self, engine: ResNetEngine) -> None:
        self._inner = engine._runtime
        self.name, self.workers = self._inner.name, self._inner.workers
        self.damage: Damage | None = None
        self.batches = 0
        engine._runtime = self

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.batches += 1
        features = self._inner(pixels).copy()
        return self.damage(pixels, features) if self.damage else features


@pytest.fixture(scope="module")
def engine(weights: WeightsConfig) -> ResNetEngine:
    made = ResNetEngine(*load_weights(weights), ONNX)
    made.warm_up(4)
    return made


@pytest.fixture
def runtime(engine: ResNetEngine) -> Iterator[FaultyRuntime]:
    sound = engine._runtime
    yield FaultyRuntime(engine)
    engine._runtime = sound


def items(n: int, explain: int | None = None) -> list[ClassifyRequest[np.ndarray]]:
    random = np.random.default_rng(n)
    return [ClassifyRequest(random.integers(0, 256, (96, 96, 3), np.uint8), 2, explain) for _ in range(n)]


def everything(value: float) -> Damage:
    return lambda pixels, features: np.full_like(features, value)


def one_feature(value: float) -> Damage:
    """Change one feature of each image, as one broken memory cell does."""

    def damage(pixels: np.ndarray, features: np.ndarray) -> np.ndarray:
        features[:, 3, 0, 0] = value
        return features

    return damage


def place_in_batch(place: int) -> Damage:
    """Change the image at one place of a batch, whatever the image."""

    def damage(pixels: np.ndarray, features: np.ndarray) -> np.ndarray:
        if len(features) > place:
            features[place] = NAN
        return features

    return damage


def this_image(image: np.ndarray) -> Damage:
    """Change one image wherever it is, as an overflow of half precision does."""

    def damage(pixels: np.ndarray, features: np.ndarray) -> np.ndarray:
        features[(pixels == image).all((1, 2, 3))] = NAN
        return features

    return damage


@pytest.mark.parametrize(
    "damage",
    [everything(NAN), everything(INF), everything(-INF), one_feature(NAN), one_feature(INF), place_in_batch(2)],
    ids=("all NaN", "all inf", "all -inf", "one NaN", "one inf", "one place of the batch"),
)
@pytest.mark.parametrize("explain", [None, 1], ids=("plain", "explained"))
async def test_a_broken_model_fails_the_whole_batch(
    engine: ResNetEngine, runtime: FaultyRuntime, damage: Damage, explain: int | None
) -> None:
    """Each image of the batch gets a retryable 503. No half of it is tried again, and nothing answers null."""
    records: list[BatchRecord] = []
    batcher = MicroBatcher(ThreadRunner(engine.classify), BatchConfig(max_batch_size=4), on_batch=records.append)
    runtime.damage = damage
    outcomes = await asyncio.gather(*(batcher.submit(item, 4) for item in items(4, explain)), return_exceptions=True)
    assert all(isinstance(outcome, ModelFailedError) for outcome in outcomes)
    assert (ModelFailedError.status, ModelFailedError.retryable) == (503, True)
    assert [(record.size, record.failed) for record in records] == [(4, 4)]
    await batcher.close()


async def test_an_image_that_overflows_costs_only_itself(engine: ResNetEngine, runtime: FaultyRuntime) -> None:
    """The model gives the test image its usual scores, so the image is at fault: 422, and the others are classified."""
    batch = items(4)
    runtime.damage = this_image(batch[1].image)
    batcher = MicroBatcher(ThreadRunner(engine.classify), BatchConfig(max_batch_size=4))
    outcomes = await asyncio.gather(*(batcher.submit(item, 4) for item in batch), return_exceptions=True)
    assert isinstance(outcomes[1], UnclassifiableImageError)
    assert UnclassifiableImageError.status == 422
    assert sum(isinstance(outcome, UnclassifiableImageError) for outcome in outcomes) == 1
    await batcher.close()


def test_finite_but_wrong_scores_are_detected_by_the_probe(engine: ResNetEngine, runtime: FaultyRuntime) -> None:
    """Damaged memory often gives finite scores; the known scores of the test image show it."""
    engine.check_probe(*engine.classify([engine.probe]))
    runtime.damage = lambda pixels, features: features[:, ::-1]
    with pytest.raises(ModelFailedError, match="differ from those at its start"):
        engine.check_probe(*engine.classify([engine.probe]))


def test_sound_batches_are_computed_once(engine: ResNetEngine, runtime: FaultyRuntime) -> None:
    """The check of finite scores adds no batch."""
    engine.classify(items(4, explain=1))
    assert runtime.batches == 1


def test_larger_batches_are_compared_when_they_are_warmed_up(engine: ResNetEngine, runtime: FaultyRuntime) -> None:
    """A batch size at which the runtime is wrong is refused, as new settings that need it are."""
    runtime.damage = lambda pixels, features: features[:, ::-1] if len(pixels) == 8 else features
    with pytest.raises(EngineError, match="engine onnxruntime: the model's scores of a test image differ"):
        engine.warm_up(8)


def test_a_gpu_that_fails_later_is_detected(weights: WeightsConfig) -> None:
    """The code around CUDA: weights in GPU memory become NaN after the start."""
    engine = ResNetEngine(*load_weights(weights), ONNX)
    runtime = cuda_runtime_on_cpu(weights)
    engine._gpu = CudaGraphRunner(runtime, engine._head, 96, CpuStream, benchmark=False)  # type: ignore[arg-type]
    engine.warm_up(4)
    assert len(engine.classify(items(3))) == 3
    with torch.inference_mode(False):
        runtime._stem.weight.data[0, 0, 0, 0] = NAN
    with pytest.raises(ModelFailedError, match="not finite"):
        engine.classify(items(3))


@pytest.mark.parametrize("runtime", ["onnxruntime", "winograd", AMX])
@pytest.mark.parametrize(
    ("parameter", "value"),
    [("conv1.weight", NAN), ("layer3.0.conv2.weight", INF), ("fc.weight", NAN), ("fc.bias", INF)],
)
def test_broken_weights_never_serve(weights: WeightsConfig, runtime: Any, parameter: str, value: float) -> None:
    """NaN or infinite weights in any layer end the start with one sentence, whatever the runtime makes of them."""
    arrays, card = load_weights(weights)
    arrays[parameter].flat[0] = value
    with pytest.raises(EngineError, match="its weights are broken"):
        ResNetEngine(arrays, card, EngineConfig(runtime=runtime))


def test_auto_says_that_weights_are_broken(weights: WeightsConfig) -> None:
    """With NaN in a convolution no runtime agrees with the reference; the error blames the weights."""
    arrays, card = load_weights(weights)
    arrays["conv1.weight"].flat[0] = NAN
    with pytest.raises(EngineError, match="its weights are broken"):
        ResNetEngine(arrays, card, EngineConfig())


@pytest.mark.parametrize("parameter", ["layer1.0.conv1.weight", "fc.bias"])
def test_new_weights_that_are_broken_leave_the_old_ones(weights: WeightsConfig, tmp_path: Path, parameter: str) -> None:
    """A hot swap to weights whose scores are NaN is refused, and the old weights serve on."""
    model = HotSwapModel(weights, ONNX, 1)
    state = load_file(weights.source)
    state[parameter].view(-1)[0] = NAN
    card = load_card(weights)
    published = publish(state, {**card.model_dump(exclude={"sha256"}), "version": "broken"}, tmp_path)
    broken = WeightsConfig(source=str(tmp_path / "model.safetensors"), sha256=published.sha256)
    with pytest.raises(EngineError, match="its weights are broken"):
        model.change(ClassifierConfig(weights=broken))
    assert {result.model.version for result in model.classify(items(2))} == {"random"}


def test_a_batch_job_fails_on_a_broken_model_and_keeps_other_rows(engine: ResNetEngine, runtime: FaultyRuntime) -> None:
    """A job stops on a broken model, to be run again; an image at fault becomes a row with its error."""
    batch = items(4)
    runtime.damage = this_image(batch[2].image)
    outcomes = classify_each(engine.classify, batch)
    assert [type(outcome) for outcome in outcomes] == [ClassifyResult] * 2 + [UnclassifiableImageError, ClassifyResult]
    runtime.damage = everything(NAN)
    with pytest.raises(ModelFailedError):
        classify_each(engine.classify, batch)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), MemoryError()],
    ids=repr,
)
def test_a_batch_without_memory_is_told_apart(engine: ResNetEngine, runtime: FaultyRuntime, error: Exception) -> None:
    """PyTorch reports it as a RuntimeError."""

    def damage(pixels: np.ndarray, features: np.ndarray) -> np.ndarray:
        raise error

    runtime.damage = damage
    with pytest.raises(MemoryError):
        engine.classify(items(2))
