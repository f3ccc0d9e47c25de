"""The Classifier as Ray Serve makes it, without Ray: faults of the model, memory, new weights."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.deadline import Deadline
from serve_app.deployments import classifier
from serve_app.errors import DeadlineExceededError, EngineError, ModelFailedError, NotReadyError, OverloadedError
from serve_app.inference.runtimes.parity import Reference
from serve_app.messages import ClassifyRequest, ClassifyResult, RequestContext
from tests.support.weights import publish_random


class NoMetric:
    """Takes the place of Ray Serve's metrics, which need Ray."""

    def __init__(self, *_: object) -> None: ...

    def observe(self, *_: object) -> None: ...

    def inc(self, *_: object) -> None: ...


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of Ray's, and no Ray."""
    monkeypatch.setattr(classifier, "prepare_replica", lambda: lambda: None)
    monkeypatch.setattr(classifier, "cores", lambda: 1)
    monkeypatch.setattr(classifier, "_node_file", lambda name: tmp_path / name)
    monkeypatch.setattr(classifier, "restore_scheduling", lambda: None)
    for name in ("Histogram", "Counter"):
        monkeypatch.setattr(classifier, name, NoMetric)
    return tmp_path


def make(weights: WeightsConfig, runtime: Any = "onnxruntime") -> Any:
    return classifier.Classifier.func_or_class(weights, EngineConfig(runtime=runtime))  # type: ignore[attr-defined] # Ray's


def requests(n: int, timeout_s: float = 60) -> list[ClassifyRequest[np.ndarray]]:
    random = np.random.default_rng(n)
    images = [random.integers(0, 256, (96, 96, 3), np.uint8) for _ in range(n)]
    return [
        ClassifyRequest(image, 2, None, RequestContext("req", i, Deadline(timeout_s))) for i, image in enumerate(images)
    ]


async def test_a_broken_model_fails_its_images_and_its_health(
    node: Path, weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN after a good start: each image gets a retryable error, and a good batch afterwards does not hide it."""
    replica = make(weights)
    await replica.reconfigure({})
    await replica.check_health()
    real = replica._model.engine._runtime
    monkeypatch.setattr(replica._model.engine, "_runtime", lambda pixels: real(pixels) * np.nan)
    outcomes = await replica(requests(3), 3)
    assert [type(outcome) for outcome in outcomes] == [ModelFailedError] * 3
    monkeypatch.setattr(replica._model.engine, "_runtime", real)
    assert [type(outcome) for outcome in await replica(requests(3), 3)] == [ClassifyResult] * 3
    with pytest.raises(NotReadyError, match="not finite numbers"):
        await replica.check_health()
    await replica.check_health()  # the probe has given the known scores


async def test_a_model_that_stays_broken_stays_unhealthy(
    node: Path, weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Serve replaces a replica after three failed checks; without traffic the probe fails them."""
    replica = make(weights)
    await replica.reconfigure({})
    real = replica._model.engine._runtime
    monkeypatch.setattr(replica._model.engine, "_runtime", lambda pixels: real(pixels)[:, ::-1])
    for _ in range(3):
        with pytest.raises(NotReadyError, match="differ from those at its start"):
            await replica.check_health()


async def test_an_image_without_memory_is_refused_alone(
    node: Path, weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that does not fit into memory runs again in parts; what does not fit alone is a retryable 503."""
    replica = make(weights)
    await replica.reconfigure({})
    real, images = replica._model.engine._runtime, requests(4)

    def hungry(pixels: np.ndarray) -> Any:
        if len(pixels) > 2 or (pixels == images[1].image).all((1, 2, 3)).any():
            raise MemoryError
        return real(pixels)

    monkeypatch.setattr(replica._model.engine, "_runtime", hungry)
    outcomes = await replica(images, 4)
    assert [type(outcome) for outcome in outcomes] == [ClassifyResult, OverloadedError, ClassifyResult, ClassifyResult]


async def test_a_deadline_that_passed_between_the_stages(node: Path, weights: WeightsConfig) -> None:
    """The error names the client's timeout, not what is left of it."""
    replica = make(weights)
    await replica.reconfigure({})
    late = ClassifyRequest(requests(1)[0].image, 1, None, RequestContext("req", 0, Deadline(2, left_s=-0.04)))
    (outcome,) = await replica([late], 1)
    assert isinstance(outcome, DeadlineExceededError)
    assert str(outcome) == "no result within 2 s"


async def test_broken_new_weights_are_refused_and_reported(
    node: Path, weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old weights serve on, the state names the error, and the replica stays healthy."""
    replica = make(weights)
    await replica.reconfigure({})
    other = publish_random(tmp_path / "other", seed=1, version="other")

    def check(self: Reference, runtime: Any) -> None:
        raise EngineError("engine onnxruntime: its features differ from PyTorch's by 1.0e+00")

    monkeypatch.setattr(Reference, "check", check)
    await replica.reconfigure({"weights": other.model_dump()})
    await asyncio.wait_for(replica._changing, 60)
    state = await replica.ping()
    assert (state.card.version, state.loading) == ("random", None)
    assert "its features differ" in str(state.refused)
    await replica.check_health()
