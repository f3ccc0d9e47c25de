"""parity.py: no runtime serves whose features are wrong, however it came to be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.config import ClassifierConfig, EngineConfig, WeightsConfig
from serve_app.errors import EngineError
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.hot_swap import HotSwapModel
from serve_app.inference.runtimes import int8, select
from serve_app.inference.runtimes.parity import TOLERANCES, Reference, make_test_images, relative_error
from serve_app.inference.weights import load_weights
from serve_app.messages import ClassifyRequest
from tests.support.runtimes import AMX, amx_permitted
from tests.support.weights import publish_random

INT8 = EngineConfig(precision="int8")
DEMO = WeightsConfig(source="demo")
Change = Callable[[np.ndarray], np.ndarray]


class WrongRuntime:
    """A runtime that computes wrong features, or fails."""

    workers = 1

    def __init__(self, inner: Any, change: Change) -> None:
        self._inner, self._change, self.name = inner, change, inner.name

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return self._change(self._inner(pixels).copy())


def fail(features: np.ndarray) -> np.ndarray:
    raise RuntimeError("illegal instruction")


def one_channel(features: np.ndarray) -> np.ndarray:
    """Change 1 of 512 channels by a tenth."""
    features[:, int(features.mean((0, 2, 3)).argmax())] *= 1.1
    return features


WRONG: dict[str, tuple[Change, str]] = {
    "other channels": (lambda features: features[:, ::-1], "its features differ from the reference by"),
    "one channel": (one_channel, "its features differ from the reference by"),
    "half of the images": (lambda features: features * np.array([1, 0, 1])[:, None, None, None], "differ"),
    "NaN": (lambda features: features * np.nan, "differ from the reference by nan"),
    "an error": (fail, r"fails on a test image \(illegal instruction\)"),
}


def break_runtime(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], change: Change) -> None:
    """Have these runtimes compute wrong features from now on."""
    real = select.runtime_factories

    def factories(*arguments: Any) -> Any:
        made = real(*arguments)
        wrong = {name: (lambda threads, name=name: WrongRuntime(made[name](threads), change)) for name in names}
        return made | wrong

    monkeypatch.setattr(select, "runtime_factories", factories)


@pytest.mark.parametrize("runtime", ["onnxruntime", "winograd", AMX])
@pytest.mark.parametrize("case", WRONG)
def test_a_named_runtime_that_is_wrong_fails_the_start(
    weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch, runtime: Any, case: str
) -> None:
    """The sentence names the runtime. A restart uses a named runtime too: the one that an earlier replica chose."""
    change, sentence = WRONG[case]
    break_runtime(monkeypatch, (runtime,), change)
    with pytest.raises(EngineError, match=f"engine {runtime}: .*{sentence}") as caught:
        ResNetEngine(*load_weights(weights), EngineConfig(runtime=runtime))
    assert "\n" not in str(caught.value)


def test_auto_takes_the_next_runtime(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that was right while it was timed and is wrong afterwards, as with more threads, is left out."""
    break_runtime(monkeypatch, ("onnxruntime",), lambda features: features[:, ::-1])
    monkeypatch.setattr(select, "rank_in_child", lambda *_: ["onnxruntime", "torch"])
    assert select.build_runtime(*load_weights(weights), EngineConfig(precision="fp32"), 1).name == "torch"


def test_auto_times_on_when_a_runtime_crashes(weights: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    break_runtime(monkeypatch, ("onnxruntime", "winograd", "amx"), fail)
    assert ResNetEngine(*load_weights(weights), EngineConfig(precision="fp32")).runtime == "torch"


def test_new_weights_on_which_the_runtime_is_wrong_change_nothing(
    weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hot swap keeps the runtime of the start; the old weights stay and the error says why."""
    model = HotSwapModel(weights, EngineConfig(runtime="onnxruntime"), 1)
    break_runtime(monkeypatch, ("onnxruntime",), lambda features: features[:, ::-1])
    other = publish_random(tmp_path, seed=1, version="other")
    with pytest.raises(EngineError, match="engine onnxruntime: its features differ"):
        model.change(ClassifierConfig(weights=other))
    request = ClassifyRequest(np.zeros((96, 96, 3), np.uint8), 1)
    assert model.classify([request])[0].model.version == "random"


def test_a_sound_int8_passes_and_a_broken_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 differs by 0.1 on images unlike those of its calibration; with ranges of other weights it is refused."""
    assert ResNetEngine(*load_weights(DEMO), INT8).runtime == "onnxruntime int8"
    arrays, card = load_weights(DEMO)
    assert card.int8 is not None
    wrong = {name: (low / 8, high / 8) for name, (low, high) in card.int8.ranges.items()}
    broken = card.model_copy(update={"int8": card.int8.model_copy(update={"ranges": wrong})})
    with pytest.raises(EngineError, match="engine onnxruntime int8: its features differ"):
        ResNetEngine(arrays, broken, INT8)
    monkeypatch.setattr(int8, "pad", lambda pixels, color: np.zeros_like(real_pad(pixels, color)))
    with pytest.raises(EngineError, match="engine onnxruntime int8: its features differ"):
        ResNetEngine(*load_weights(DEMO), INT8)


real_pad = int8.pad


def test_every_runtime_is_far_from_its_tolerance(weights: WeightsConfig) -> None:
    """A tenth of the tolerance in floating point, two thirds in int8: rounding never refuses a sound runtime."""
    float32 = ["onnxruntime", "winograd"] + ["amx"] * amx_permitted()
    rounded = ["int16"] + ["bf16"] * amx_permitted()
    for spec, runtimes in ((weights, [*float32, *rounded]), (DEMO, [*float32, *rounded, "int8"])):
        for name in runtimes:
            arrays, card = load_weights(spec)
            reference = Reference(arrays, card.transform)
            key = "precision" if name in ("int8", "int16", "bf16") else "runtime"
            config = EngineConfig.model_validate({key: name})
            runtime = select.build_runtime(arrays, card, config, 1)
            error = relative_error(runtime(reference._images), reference._features)
            assert error < TOLERANCES[runtime.name] * (2 / 3 if name == "int8" else 0.1)


def test_the_test_images_are_always_the_same() -> None:
    assert (make_test_images(64) == make_test_images(64)).all()
    assert make_test_images(64).shape == (3, 64, 64, 3)
