"""int8 on a CPU: calibrated on images, measured, close to float32, refused with a reason where it cannot run."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from starlette.testclient import TestClient
from torchvision.models import resnet18
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.config import EngineConfig, LimitsConfig, WeightsConfig
from serve_app.errors import DatasetError, EngineError
from serve_app.http.app import create_app
from serve_app.inference import quantize as module
from serve_app.inference import weights as weights_module
from serve_app.inference.card import load_card
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.network import fold
from serve_app.inference.quantize import class_ids, fingerprint, quantize
from serve_app.inference.runtimes import int8
from serve_app.inference.runtimes.onnx_graph import to_onnx
from serve_app.inference.runtimes.onnxruntime import OnnxRuntime
from serve_app.inference.torch_model import load_model, write_tensors
from serve_app.inference.weights import load_weights, republish, sha256
from serve_app.messages import ClassifyRequest, ClassifyResult
from serve_app.model_card import Int8Calibration, Int8Cost, ModelCard
from serve_app.preprocessing.transform import preprocess
from tests.support.local_service import LocalService
from tests.support.photos import make_photo
from tests.support.weights import LABELS

INT8 = EngineConfig(precision="int8")
DEMO = WeightsConfig(source="demo")
PHOTOS = 16


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in folders named like classes."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(PHOTOS):
        path = root / LABELS[i % 2] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make_photo(i, 120, 100))
    return root


@pytest.fixture(scope="module")
def quantized(weights: WeightsConfig, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> WeightsConfig:
    """Random weights, calibrated on ten photos."""
    return quantize(weights, photos, tmp_path_factory.mktemp("int8"), count=10, held_out=99)[0]


@pytest.fixture(scope="module")
def engine(quantized: WeightsConfig) -> ResNetEngine:
    return ResNetEngine(*load_weights(quantized), INT8)


def items(spec: WeightsConfig, n: int = 8) -> list[ClassifyRequest[np.ndarray]]:
    """Crops of photos that were not used for calibration."""
    card = load_card(spec)
    crops = (preprocess(make_photo(100 + i), card.transform, 10**6).pixels for i in range(n))
    return [ClassifyRequest(crop, len(card.labels), "top") for crop in crops]


def by_class(answers: Sequence[ClassifyResult]) -> np.ndarray:
    return np.array([[s for _, s in sorted(zip(a.class_ids, a.scores, strict=True))] for a in answers])


def test_the_weights_stay_and_the_card_gains_a_calibration(weights: WeightsConfig, quantized: WeightsConfig) -> None:
    """The weights file keeps its bytes; the card gains the calibration and its cost, and nothing else changes."""
    assert Path(quantized.source).read_bytes() == Path(weights.source).read_bytes()
    card, before = load_card(quantized), load_card(weights)
    assert before.int8 is None
    assert card.model_copy(update={"int8": None}) == before
    assert card.int8 is not None
    assert card.int8.images == 10
    assert card.int8.cost is not None
    assert card.int8.cost.images == PHOTOS - 10
    assert card.int8.cost.agreement >= 0.7
    assert 0 < card.int8.cost.mean_score_difference <= card.int8.cost.largest_score_difference < 0.1
    assert card.int8.cost.top1 is not None


@pytest.mark.parametrize("which", ["random", "demo"])
def test_int8_is_close_to_float32(quantized: WeightsConfig, which: str) -> None:
    """On other photos the scores differ by less than 0.1, and at most one best class differs."""
    spec = quantized if which == "random" else DEMO
    batch = items(spec)
    exact, close = (
        by_class(ResNetEngine(*load_weights(spec), engine).classify(batch))
        for engine in (EngineConfig(runtime="onnxruntime", precision="fp32"), INT8)
    )
    assert 0 < np.abs(exact - close).max() < 0.1
    assert (exact.argmax(1) == close.argmax(1)).sum() >= len(batch) - 1


def test_a_batch_equals_singles(engine: ResNetEngine, quantized: WeightsConfig) -> None:
    """Integer sums are exact, so the other images of a batch change no score."""
    batch = items(quantized)
    singles = [engine.classify([item])[0] for item in batch]
    assert np.abs(by_class(engine.classify(batch)) - by_class(singles)).max() < 1e-6


def test_the_map_explains_the_logit(engine: ResNetEngine, quantized: WeightsConfig) -> None:
    """The last layer is float32: mean(CAM_c) + b_c == logit_c."""
    for answer in engine.classify(items(quantized)):
        heat_map = answer.activation_map
        assert heat_map is not None
        assert abs(heat_map.values.mean() + heat_map.bias - heat_map.logit) < 1e-3


def test_every_convolution_is_int8(quantized: WeightsConfig, tmp_path: Path) -> None:
    """ONNX Runtime fuses convolution, ReLU and quantization; it converts once at the start and once at the end."""
    arrays, card = load_weights(quantized)
    assert card.int8 is not None
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    graph = int8.quantize(to_onnx(fold(arrays), card.transform), card.int8.ranges)
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert (kinds.count("QLinearConv"), kinds.count("QLinearAdd")) == (20, 8)
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (1, 1)
    assert not {"Conv", "FusedConv", "Add", "Relu", "Sub", "Mul"} & set(kinds)


def test_normalization_moves_into_the_first_convolution(quantized: WeightsConfig) -> None:
    """In float32 the features stay the same up to rounding of the first weights, at the borders too."""
    arrays, card = load_weights(quantized)
    pixels = np.stack([item.image for item in items(quantized, 2)])
    graph = to_onnx(fold(arrays), card.transform)
    expected = OnnxRuntime(graph.SerializeToString(), 1)(pixels)
    mean = np.rint(np.array(card.transform.mean) * 255).astype(np.uint8)
    moved = OnnxRuntime(int8.fold_normalization(graph).SerializeToString(), 1)
    assert np.abs(moved(int8.pad(pixels, mean)) - expected).max() < 0.02 * expected.max()
    assert np.abs(moved(int8.pad(pixels, np.zeros(3, np.uint8))) - expected).max() > 0.05 * expected.max()


def test_cpus_that_saturate_get_the_same_scores(
    engine: ResNetEngine, quantized: WeightsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU whose 8-bit sums overflow uses slower instructions and computes equal scores."""
    monkeypatch.setattr(int8, "sums_are_exact", lambda: False)
    careful = ResNetEngine(*load_weights(quantized), INT8)
    batch = items(quantized)
    assert np.array_equal(by_class(careful.classify(batch)), by_class(engine.classify(batch)))


def test_a_missing_calibration_names_the_command(weights: WeightsConfig) -> None:
    with pytest.raises(EngineError, match=r"holds no calibration; make one with `serve-app quantize W"):
        ResNetEngine(*load_weights(weights), INT8)


def test_a_calibration_of_another_graph_is_refused(quantized: WeightsConfig) -> None:
    arrays, card = load_weights(quantized)
    assert card.int8 is not None
    ranges = {name: limits for name, limits in card.int8.ranges.items() if name != "pooled"}
    other = card.model_copy(update={"int8": card.int8.model_copy(update={"ranges": ranges})})
    with pytest.raises(EngineError, match="no range for pooled; calibrate with"):
        ResNetEngine(arrays, other, INT8)


@pytest.mark.parametrize(
    ("runtime", "precision", "sentence"),
    [
        ("torch", "int8", "engine torch: has no int8"),
        ("winograd", "int8", "engine winograd: has no int8"),
        ("cuda", "int8", "int8 runs on CPUs only"),
        ("onnxruntime", "fp16", "fp16 needs a GPU"),
        ("torch", "bf16", "bf16 needs the runtime amx or auto"),
        ("amx", "int16", "engine amx: precision int16 needs the runtime winograd or auto"),
        ("cuda", "int16", "int16 runs on CPUs only"),
    ],
)
def test_an_unavailable_precision_is_one_sentence(
    quantized: WeightsConfig, runtime: Any, precision: Any, sentence: str
) -> None:
    with pytest.raises(EngineError, match=sentence) as caught:
        ResNetEngine(*load_weights(quantized), EngineConfig(runtime=runtime, precision=precision))
    assert "\n" not in str(caught.value)


def test_missing_onnx_runtime_is_one_sentence(quantized: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(EngineError, match="engine int8: ONNX Runtime is not installed here"):
        ResNetEngine(*load_weights(quantized), INT8)


def test_the_demo_model_is_calibrated() -> None:
    """On photos that did not set the ranges, int8 costs the demo model at most a point of accuracy."""
    card = load_card(DEMO)
    cost = card.int8 and card.int8.cost
    assert cost is not None
    assert cost.images >= 1000
    assert cost.top1 is not None
    assert cost.top1_fp32 is not None
    assert cost.top1 > cost.top1_fp32 - 0.01


def test_models_endpoint_shows_the_cost_and_not_the_ranges(quantized: WeightsConfig) -> None:
    with TestClient(create_app(LocalService(quantized, LimitsConfig()))) as http:
        shown = http.get("/v1/models").json()["models"][0]["int8"]
    assert {"method", "images", "fingerprint", "cost"} == set(shown)
    assert shown["cost"]["images"] == PHOTOS - 10


@pytest.mark.parametrize("limits", [(1.0, -1.0), (0.0, float("nan")), (0.0, float("inf"))])
def test_impossible_ranges_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ValidationError):
        Int8Calibration(method="", images=1, fingerprint="0" * 64, ranges={"pooled": limits})


def test_measured_images_do_not_calibrate(
    weights: WeightsConfig, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sets are disjoint, follow the seed and respect their sizes; --test replaces the measured set."""
    used: dict[str, set[Path]] = {}
    cost = Int8Cost(images=1, agreement=1, mean_score_difference=0, largest_score_difference=0)

    def fingerprint(files: Sequence[Path], root: Path) -> str:
        used["calibrated"] = set(files)
        return "0" * 64

    def measure(spec: WeightsConfig, card: ModelCard, files: Sequence[Path], truth: list[int] | None) -> Int8Cost:
        used["measured"] = set(files)
        return cost

    monkeypatch.setattr(module, "calibrate", lambda graph, batches: {})
    monkeypatch.setattr(module, "fingerprint", fingerprint)
    monkeypatch.setattr(module, "measure", measure)
    quantize(weights, photos, tmp_path, count=8, held_out=5)
    first = used["calibrated"]
    assert (len(first), len(used["measured"])) == (8, 5)
    assert not first & used["measured"]
    quantize(weights, photos, tmp_path, count=8, held_out=5, seed=1)
    assert used["calibrated"] != first
    quantize(weights, photos, tmp_path, count=PHOTOS, held_out=99, test=photos / "ant")
    assert used["measured"] == set((photos / "ant").iterdir())


def test_unusable_folders_are_refused(weights: WeightsConfig, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none is left to measure on; add images, use a smaller --count, or --test"):
        quantize(weights, photos, tmp_path, PHOTOS, 9)
    with pytest.raises(DatasetError, match="contains no images"):
        quantize(weights, tmp_path / "none", tmp_path, 1, 1)
    (tmp_path / "a.jpg").write_bytes(make_photo())
    (tmp_path / "b.jpg").write_bytes(make_photo()[:900])
    with pytest.raises(DatasetError, match=r"b\.jpg: the JPEG data is truncated or corrupt"):
        quantize(weights, tmp_path, tmp_path, count=1, held_out=1)


def test_class_ids_come_from_the_folders(quantized: WeightsConfig, photos: Path, tmp_path: Path) -> None:
    card = load_card(quantized)
    assert class_ids([photos / "bee" / "1.jpg", photos / "ant" / "0.jpg"], photos, card) == [1, 0]
    assert class_ids([photos / "ant" / "0.jpg"], photos.parent, card) is None
    assert class_ids([tmp_path / "0.jpg"], tmp_path, card) is None


def test_the_fingerprint_covers_names_and_contents(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        root.mkdir()
        for name in "ab":
            (root / name).write_bytes(name.encode())
    expected = fingerprint([first / "a", first / "b"], first)
    assert fingerprint([second / "b", second / "a"], second) == expected
    (second / "b").write_bytes(b"c")
    assert fingerprint([second / "a", second / "b"], second) != expected


def test_imagenets_weights_become_safetensors_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet's weights are republished as float32 safetensors with a card."""
    torch.manual_seed(0)
    state = resnet18().state_dict()
    write_tensors(state, tmp_path / "converted.safetensors")
    found = tmp_path / "converted.safetensors", sha256(tmp_path / "converted.safetensors")
    monkeypatch.setattr(weights_module, "find_imagenet", lambda _digits: found)
    spec = republish(WeightsConfig(source="imagenet"), load_card(WeightsConfig(source="imagenet")), tmp_path / "out")
    model, card = load_model(spec)
    assert len(card.labels) == 1000
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_command_can_write_in_place(quantized: WeightsConfig, photos: Path) -> None:
    """OUT may be the weights' own folder: the file stays, and the printed line serves it."""
    out = str(Path(quantized.source).parent)
    result = CliRunner().invoke(app, ["quantize", quantized.source, str(photos), out, "--count", "12"])
    refused = CliRunner().invoke(app, ["quantize", quantized.source, out, out])
    assert (result.exit_code, refused.exit_code) == (0, 1)
    for line in (f"weights: {{source: {quantized.source}, sha256: {quantized.sha256}}}", '"images": 4'):
        assert line in result.stdout
    assert sha256(Path(quantized.source)) == quantized.sha256
    assert re.match("error: .* contains no images", refused.stderr)
