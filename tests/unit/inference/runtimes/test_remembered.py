"""The choice of `auto` outlives the process; whatever is wrong with its file, the runtimes are measured again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.errors import EngineError
from serve_app.inference.card import load_card
from serve_app.inference.runtimes import remembered, select
from serve_app.inference.runtimes.parity import Reference
from serve_app.inference.runtimes.remembered import RememberedChoice
from serve_app.inference.weights import load_weights
from serve_app.model_card import ModelCard
from serve_app.paths import CACHE_VARIABLE

BATCHES = (1, 8)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def card(weights: WeightsConfig) -> ModelCard:
    return load_card(weights)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The results of each measurement, which finds ONNX Runtime fastest."""
    calls: list[list[str]] = []

    def rank(*_: object) -> list[str]:
        calls.append(["onnxruntime", "torch"])
        return calls[-1]

    monkeypatch.setattr(select, "rank_in_child", rank)
    return calls


def build(weights: WeightsConfig, runtime: str = "auto", cores: int = 1) -> str:
    config = EngineConfig.model_validate({"runtime": runtime, "precision": "fp32"})
    return select.build_runtime(*load_weights(weights), config, cores).name


def test_the_next_start_does_not_measure(weights: WeightsConfig, measured: list[list[str]]) -> None:
    """The first start measures, the second takes what it found; a runtime that is configured needs neither."""
    assert [build(weights), build(weights)] == ["onnxruntime", "onnxruntime"]
    assert len(measured) == 1
    assert build(weights, "torch") == "torch"
    assert len(measured) == 1


@pytest.mark.parametrize("content", ["", "{", '{"runtime": "gone"}', '{"runtime": 1}', "\0\0\0"])
def test_a_damaged_file_is_measured_again(
    weights: WeightsConfig, measured: list[list[str]], folder: Path, content: str
) -> None:
    """Empty or cut, as a power cut leaves it; of a runtime that does not exist; and it is good afterwards."""
    build(weights)
    (file,) = folder.iterdir()
    file.write_text(content)
    assert [build(weights), build(weights)] == ["onnxruntime", "onnxruntime"]
    assert len(measured) == 2


def test_a_runtime_that_is_wrong_now_is_measured_again(
    weights: WeightsConfig, measured: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next fastest takes its place, and the next start takes the new choice."""
    build(weights)
    real = Reference.check

    def check(self: Reference, runtime: Any) -> None:
        if runtime.name == "onnxruntime":
            raise EngineError("engine onnxruntime: its features differ")
        real(self, runtime)

    monkeypatch.setattr(Reference, "check", check)
    assert [build(weights), build(weights)] == ["torch", "torch"]
    assert len(measured) == 2


def test_a_folder_that_cannot_be_written_costs_a_measurement(
    weights: WeightsConfig, measured: list[list[str]], folder: Path
) -> None:
    """Such as that of a read-only container."""
    folder.write_text("a file in its place")
    assert [build(weights), build(weights)] == ["onnxruntime", "onnxruntime"]
    assert len(measured) == 2


def other_cpu(patch: pytest.MonkeyPatch, card: ModelCard) -> RememberedChoice:
    patch.setattr(remembered, "_cpu", lambda: ["another"])
    return RememberedChoice(card, 1, BATCHES)


def other_version(patch: pytest.MonkeyPatch, card: ModelCard) -> RememberedChoice:
    patch.setattr(remembered, "_version", lambda name: "2" if name == "onnxruntime" else "1")
    return RememberedChoice(card, 1, BATCHES)


def other_code(patch: pytest.MonkeyPatch, card: ModelCard) -> RememberedChoice:
    patch.setattr(remembered, "_code", lambda: "changed")
    return RememberedChoice(card, 1, BATCHES)


def other_weights(_patch: pytest.MonkeyPatch, card: ModelCard) -> RememberedChoice:
    return RememberedChoice(card.model_copy(update={"sha256": "0" * 64}), 1, BATCHES)


def other_crop(_patch: pytest.MonkeyPatch, card: ModelCard) -> RememberedChoice:
    transform = card.transform.model_copy(update={"crop_px": 64})
    return RememberedChoice(card.model_copy(update={"transform": transform}), 1, BATCHES)


def other_cores(_patch: pytest.MonkeyPatch, card: ModelCard) -> RememberedChoice:
    return RememberedChoice(card, 2, BATCHES)


@pytest.mark.parametrize("other", [other_cpu, other_version, other_code, other_weights, other_crop, other_cores])
def test_a_choice_belongs_to_its_circumstances(
    card: ModelCard,
    monkeypatch: pytest.MonkeyPatch,
    other: Callable[[pytest.MonkeyPatch, ModelCard], RememberedChoice],
) -> None:
    """Another CPU, version, code, crop size, set of weights or number of cores knows nothing of it."""
    RememberedChoice(card, 1, BATCHES).write("winograd")
    assert RememberedChoice(card, 1, BATCHES).read() == "winograd"
    assert other(monkeypatch, card).read() is None
