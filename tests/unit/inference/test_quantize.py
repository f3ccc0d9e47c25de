"""int8 on a CPU: calibrated by images, measured, close to float32, refused in one sentence where it cannot be had."""

from __future__ import annotations

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

from serve_app.config import EngineConfig, LimitsConfig, WeightsConfig
from serve_app.errors import DatasetError, EngineError
from serve_app.http.app import create_app
from serve_app.inference import quantize as module
from serve_app.inference import weights as weights_module
from serve_app.inference.card import load_card
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.quantize import quantize
from serve_app.inference.runtimes import int8
from serve_app.inference.runtimes.folding import fold
from serve_app.inference.runtimes.onnx_graph import to_onnx
from serve_app.inference.runtimes.onnxruntime import OnnxRuntime
from serve_app.inference.weights import load_model, republish, sha256
from serve_app.messages import Classification, ClassifyItem
from serve_app.model_card import Int8Calibration, Int8Cost, ModelCard
from serve_app.preprocessing.transform import preprocess
from tests.conftest import LABELS, make_photo
from tests.support.local_service import LocalService

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
def made(weights: WeightsConfig, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> WeightsConfig:
    """Random weights, calibrated."""
    return quantize(weights, photos, tmp_path_factory.mktemp("int8"), count=10)[0]


@pytest.fixture(scope="module")
def engine(made: WeightsConfig) -> ResNetEngine:
    return ResNetEngine(*load_model(made), INT8)


def items(spec: WeightsConfig, n: int = 8) -> list[ClassifyItem]:
    """Photos that calibrated nothing."""
    transform = load_card(spec).transform
    photos = (make_photo(100 + i) for i in range(n))
    return [ClassifyItem(preprocess(photo, transform, 10**6).pixels, 10, "top") for photo in photos]


def by_class(answers: Sequence[Classification]) -> np.ndarray:
    return np.array([[s for _, s in sorted(zip(a.class_ids, a.scores, strict=True))] for a in answers])


def test_the_weights_stay_and_the_card_gains_a_calibration(weights: WeightsConfig, made: WeightsConfig) -> None:
    """The same bytes, the same card but for int8, and it holds what int8 costs."""
    assert Path(made.source).read_bytes() == Path(weights.source).read_bytes()
    card, before = load_card(made), load_card(weights)
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
def test_int8_is_close_to_float32(made: WeightsConfig, which: str) -> None:
    """On photos that calibrated nothing: nearly the same scores, and the same class on most."""
    spec = made if which == "random" else DEMO
    batch = items(spec)
    exact, close = (
        by_class(ResNetEngine(*load_model(spec), engine).classify(batch))
        for engine in (EngineConfig(runtime="onnxruntime", precision="fp32"), INT8)
    )
    assert 0 < np.abs(exact - close).max() < 0.1
    assert (exact.argmax(1) == close.argmax(1)).sum() >= len(batch) - 1


def test_a_batch_equals_singles(engine: ResNetEngine, made: WeightsConfig) -> None:
    """Sums of bytes are exact, so neighbours in a batch change nothing."""
    batch = items(made)
    alone = [engine.classify([item])[0] for item in batch]
    assert np.abs(by_class(engine.classify(batch)) - by_class(alone)).max() < 1e-6


def test_map_adds_up(engine: ResNetEngine, made: WeightsConfig) -> None:
    """The last layer is float32: mean(CAM_c) + b_c == logit_c."""
    for answer in engine.classify(items(made)):
        found = answer.activation_map
        assert found is not None
        assert abs(found.values.mean() + found.bias - found.logit) < 1e-3


def test_every_convolution_is_in_bytes(made: WeightsConfig, tmp_path: Path) -> None:
    """ONNX Runtime fuses convolution, ReLU and steps; one conversion at the start, one at the end."""
    model, card = load_model(made)
    assert card.int8 is not None
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    graph = int8.quantize(to_onnx(fold(model), card.transform), card.int8.ranges)
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert (kinds.count("QLinearConv"), kinds.count("QLinearAdd")) == (20, 8)
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (1, 1)
    assert not {"Conv", "FusedConv", "Add", "Relu", "Sub", "Mul"} & set(kinds)


def test_the_normalisation_moves_into_the_first_convolution(made: WeightsConfig) -> None:
    """In float32 it gives the same features but for the first weights' rounding, at the borders too."""
    model, card = load_model(made)
    pixels = np.stack([item.pixels for item in items(made, 2)])
    graph = to_onnx(fold(model), card.transform)
    expected = OnnxRuntime(graph.SerializeToString(), 1)(pixels)
    mean = np.rint(np.array(card.transform.mean) * 255).astype(np.uint8)
    moved = OnnxRuntime(int8.fold_normalization(graph).SerializeToString(), 1)
    assert (moved(int8.pad(pixels, mean)) - expected).abs().max() < 0.02 * expected.max()
    assert (moved(int8.pad(pixels, np.zeros(3, np.uint8))) - expected).abs().max() > 0.05 * expected.max()


def test_the_careful_way_gives_the_same(
    engine: ResNetEngine, made: WeightsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CPU gets that overflows when it adds bytes: the same answers, more slowly."""
    monkeypatch.setattr(int8, "sums_are_exact", lambda: False)
    careful = ResNetEngine(*load_model(made), INT8)
    batch = items(made)
    assert np.array_equal(by_class(careful.classify(batch)), by_class(engine.classify(batch)))


def test_no_calibration_is_one_sentence_with_the_command(weights: WeightsConfig) -> None:
    with pytest.raises(EngineError, match=r"holds no calibration; make one with `serve-app quantize W"):
        ResNetEngine(*load_model(weights), INT8)


def test_a_calibration_of_another_graph_is_refused(made: WeightsConfig) -> None:
    model, card = load_model(made)
    assert card.int8 is not None
    ranges = {name: limits for name, limits in card.int8.ranges.items() if name != "pooled"}
    other = card.model_copy(update={"int8": card.int8.model_copy(update={"ranges": ranges})})
    with pytest.raises(EngineError, match="no range for pooled; calibrate with"):
        ResNetEngine(model, other, INT8)


@pytest.mark.parametrize(
    ("runtime", "precision", "sentence"),
    [
        ("torch", "int8", "engine torch: has no int8"),
        ("mnn", "int8", "engine mnn: has no int8"),
        ("cuda", "int8", "int8 runs on CPUs only"),
        ("onnxruntime", "fp16", "fp16 needs a GPU"),
        ("torch", "bf16", "bf16 needs a GPU"),
    ],
)
def test_what_no_runtime_has_is_one_sentence(made: WeightsConfig, runtime: Any, precision: Any, sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence) as caught:
        ResNetEngine(*load_model(made), EngineConfig(runtime=runtime, precision=precision))
    assert "\n" not in str(caught.value)


def test_without_onnx_runtime_is_one_sentence(made: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(EngineError, match="engine int8: ONNX Runtime is not installed here"):
        ResNetEngine(*load_model(made), INT8)


def test_the_demo_model_is_calibrated() -> None:
    """Its card says what int8 costs on CIFAR-10's whole test split: less than half a point."""
    card = load_card(DEMO)
    assert card.int8 is not None
    cost = card.int8.cost
    assert cost is not None
    assert cost.top1 is not None
    assert cost.images == 10_000
    assert cost.top1_fp32 == pytest.approx(card.metrics["cifar10-test"]["top1"], abs=0.001)
    assert cost.top1 > cost.top1_fp32 - 0.005


def test_models_shows_the_cost_and_not_the_ranges(made: WeightsConfig) -> None:
    with TestClient(create_app(LocalService(made, LimitsConfig()))) as http:
        shown = http.get("/v1/models").json()["models"][0]["int8"]
    assert {"method", "images", "fingerprint", "cost"} == set(shown)
    assert shown["cost"]["images"] == PHOTOS - 10


@pytest.mark.parametrize("limits", [(1.0, -1.0), (0.0, float("nan")), (0.0, float("inf"))])
def test_impossible_ranges_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ValidationError):
        Int8Calibration(method="", images=1, fingerprint="0" * 64, ranges={"pooled": limits})


def test_held_out_images_calibrate_nothing(
    weights: WeightsConfig, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disjoint, by the seed, no more than asked for; another folder is measured on when given."""
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
    quantize(weights, photos, tmp_path, count=8, seed=1)
    assert used["calibrated"] != first
    quantize(weights, photos, tmp_path, count=PHOTOS, test=photos / "ant")
    assert used["measured"] == set((photos / "ant").iterdir())


def test_unusable_folders_are_one_sentence(weights: WeightsConfig, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none is left to measure on; add images, use --count or --test"):
        quantize(weights, photos, tmp_path)
    with pytest.raises(DatasetError, match="holds no images"):
        quantize(weights, tmp_path / "none", tmp_path)
    (tmp_path / "a.jpg").write_bytes(make_photo())
    (tmp_path / "b.jpg").write_bytes(make_photo()[:900])
    with pytest.raises(DatasetError, match=r"b\.jpg: the JPEG data is truncated or corrupt"):
        quantize(weights, tmp_path, tmp_path, count=1)


def test_folders_of_other_names_are_no_classes(made: WeightsConfig, photos: Path, tmp_path: Path) -> None:
    card = load_card(made)
    assert module.class_ids([photos / "bee" / "1.jpg", photos / "ant" / "0.jpg"], photos, card) == [1, 0]
    assert module.class_ids([photos / "ant" / "0.jpg"], photos.parent, card) is None
    assert module.class_ids([tmp_path / "0.jpg"], tmp_path, card) is None


def test_the_fingerprint_is_of_names_and_contents(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        root.mkdir()
        for name in "ab":
            (root / name).write_bytes(name.encode())
    found = module.fingerprint([first / "a", first / "b"], first)
    assert module.fingerprint([second / "b", second / "a"], second) == found
    (second / "b").write_bytes(b"c")
    assert module.fingerprint([second / "a", second / "b"], second) != found


def test_imagenets_numbers_become_safetensors_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's file cannot carry a card; its numbers stay float32."""
    torch.manual_seed(0)
    state = resnet18().state_dict()
    monkeypatch.setattr(weights_module, "_imagenet_state", lambda: state)
    spec = republish(WeightsConfig(source="imagenet"), load_card(WeightsConfig(source="imagenet")), tmp_path)
    model, card = load_model(spec)
    assert len(card.labels) == 1000
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_command(
    made: WeightsConfig, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In place too: the file is not copied onto itself; what it prints can be served."""
    folder = Path(made.source).parent
    monkeypatch.setattr("sys.argv", ["quantize", made.source, str(photos), str(folder), "--count", "12"])
    module.main()
    printed = capsys.readouterr().out
    assert f"weights: {{source: {made.source}, sha256: {made.sha256}}}" in printed
    assert '"images": 4' in printed
    assert sha256(Path(made.source)) == made.sha256
    monkeypatch.setattr("sys.argv", ["quantize", made.source, str(photos / "none"), str(folder)])
    with pytest.raises(SystemExit, match=r"error: .*holds no images"):
        module.main()
