"""Hot swap: new weights take over between batches, or nothing changes and the error says why."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from serve_app.config import ClassifierConfig, EngineConfig, WeightsConfig
from serve_app.errors import InvalidParameterError, WeightsError
from serve_app.inference.hot_swap import HotSwapModel
from serve_app.messages import ClassifyRequest
from tests.support.runtimes import needs_amx
from tests.support.weights import LABELS, publish_random

OTHER = ("gnu", "hen", "ibis", "jay")
ITEMS = [ClassifyRequest(np.full((96, 96, 3), shade, np.uint8), 2) for shade in (0, 90, 255)]


@pytest.fixture
def model(weights: WeightsConfig) -> HotSwapModel:
    return HotSwapModel(weights, EngineConfig(runtime="onnxruntime"), 1)


@pytest.fixture
def other(tmp_path: Path) -> WeightsConfig:
    return publish_random(tmp_path / "other", OTHER, 1, "other")


def words(model: HotSwapModel) -> set[str]:
    """Return all labels in the results of a batch."""
    return {label for result in model.classify(ITEMS) for label in result.labels}


def test_there_and_back(model: HotSwapModel, other: WeightsConfig) -> None:
    """Answers name the weights and use their labels; without `weights` those of `args` serve again."""
    assert words(model) <= set(LABELS)
    model.change(ClassifierConfig(weights=other))
    assert words(model) <= set(OTHER)
    assert {result.model.version for result in model.classify(ITEMS)} == {"other"}
    model.change(ClassifierConfig())
    assert words(model) <= set(LABELS)


def test_a_batch_never_mixes_weights(model: HotSwapModel, other: WeightsConfig) -> None:
    """While weights change back and forth, each batch is answered by one version in its own words."""
    over, batches = threading.Event(), []

    def ask() -> None:
        while not over.is_set():
            batches.append(model.classify(ITEMS))

    thread = threading.Thread(target=ask)
    thread.start()
    for weights in (other, None, other):
        model.change(ClassifierConfig(weights=weights))
    over.set()
    thread.join()
    for batch in batches:
        (version,) = {result.model.version for result in batch}
        spoken = {label for result in batch for label in result.labels}
        assert spoken <= set(OTHER if version == "other" else LABELS)
    assert {batch[0].model.version for batch in batches} == {"random", "other"}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"sha256": "0" * 64}, "the configured sha256 0+ differs from the card's"),
        ({"source": "resnet51"}, "unknown name"),
        ({"source": "/nowhere/model.safetensors"}, "cannot read the card"),
    ],
)
def test_weights_that_cannot_be_had_change_nothing(
    model: HotSwapModel, other: WeightsConfig, changed: dict[str, str], sentence: str
) -> None:
    with pytest.raises(WeightsError, match=sentence):
        model.change(ClassifierConfig(weights=other.model_copy(update=changed)))
    assert words(model) <= set(LABELS)
    assert model.engine.card.version == "random"


def test_another_crop_is_refused(model: HotSwapModel, tmp_path: Path) -> None:
    """The Preprocessor would continue to make crops of the old size."""
    smaller = publish_random(tmp_path, crop_px=64)
    with pytest.raises(WeightsError, match=r"take crops of 64 px from .*, but the Preprocessor makes crops of 96"):
        model.change(ClassifierConfig(weights=smaller))
    assert model.engine.card.transform.crop_px == 96


def test_a_class_that_these_weights_do_not_have_is_refused(model: HotSwapModel, other: WeightsConfig) -> None:
    """A class id that the old weights have and the new ones do not is an error that names the largest id."""
    item = ClassifyRequest(ITEMS[0].image, 1, len(LABELS) - 1)
    (result,) = model.classify([item])
    assert result.activation_map is not None
    assert result.activation_map.label == LABELS[-1]
    model.change(ClassifierConfig(weights=other))
    with pytest.raises(InvalidParameterError, match="explain_class: 5 is not a class id; the largest is 3"):
        model.classify([item])


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [pytest.param("amx", "bf16", marks=needs_amx), ("winograd", "int16")],
)
def test_the_precision_stays(weights: WeightsConfig, other: WeightsConfig, runtime: str, precision: str) -> None:
    """The settings in effect name the runtime that `auto` took, and new weights run in it too."""
    model = HotSwapModel(weights, EngineConfig.model_validate({"precision": precision}), 1)
    assert model.config == EngineConfig.model_validate({"runtime": runtime, "precision": precision})
    model.change(ClassifierConfig(weights=other))
    assert model.engine.runtime == f"{runtime} {precision}"
    assert words(model) <= set(OTHER)
