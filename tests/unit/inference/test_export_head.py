"""A head and its backbone as one file: ONNX and safetensors give the service's own classes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.errors import EngineError, InvalidParameterError
from serve_app.inference import export_head
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.export_head import HeadLayer, export_onnx, export_weights, run_onnx
from serve_app.inference.torch_model import load_model, to_arrays
from serve_app.messages import ClassifyRequest
from tests.support.photos import make_picture

PX, PICTURES = 96, 200
RANDOM = np.random.default_rng(3)
LABELS = ("mine", "others", "keine Tasse ☕")
LAYER = HeadLayer(
    "cups",
    "000001-abcdef01",
    LABELS,
    RANDOM.normal(size=(3, 512)).astype(np.float32),
    RANDOM.normal(size=3).astype(np.float32),
)


def pictures() -> np.ndarray:
    """Return crops, uint8, (PICTURES, PX, PX, 3)."""
    return np.stack([np.asarray(make_picture(PX, PX, seed)) for seed in range(PICTURES)])


@pytest.fixture(scope="module")
def expected(weights: WeightsConfig) -> np.ndarray:
    """The head's logits on the service's embeddings of the pictures, as softmax scores."""
    model, card = load_model(weights)
    engine = ResNetEngine(to_arrays(model), card, EngineConfig(runtime="torch"))
    requests = [ClassifyRequest(crop, 1, features="pooled") for crop in pictures()]
    batches = [engine.classify(requests[start : start + 50]) for start in range(0, PICTURES, 50)]
    embeddings = np.stack([result.embedding for batch in batches for result in batch if result.embedding is not None])
    logits = embeddings @ LAYER.weight.T + LAYER.bias
    scores = np.exp(logits - logits.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def test_onnx_gives_the_same_classes(weights: WeightsConfig, expected: np.ndarray, tmp_path: Path) -> None:
    """200 pictures get the service's best class from ONNX Runtime; the file has labels and sizes."""
    out = tmp_path / "cups.onnx"
    export_onnx(LAYER, weights, out)
    scores = run_onnx(out.read_bytes(), pictures())
    assert (scores.argmax(1) == expected.argmax(1)).all()
    assert len(set(expected.argmax(1))) > 1
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    metadata = {each.key: each.value for each in onnx.load(out).metadata_props}
    assert tuple(json.loads(metadata["labels"])) == LABELS
    assert (metadata["crop_px"], metadata["resize_px"]) == ("96", "112")


def test_safetensors_run_as_weights(weights: WeightsConfig, expected: np.ndarray, tmp_path: Path) -> None:
    """The zip's card and weights load as any others do, and the engine gives the head's classes and scores."""
    out = tmp_path / "cups.zip"
    export_weights(LAYER, weights, out)
    with zipfile.ZipFile(out) as archive:
        archive.extractall(tmp_path)
    card = json.loads((tmp_path / "cups.json").read_text())
    spec = WeightsConfig(source=str(tmp_path / "cups.safetensors"), sha256=card["sha256"])
    model, loaded = load_model(spec)
    assert (loaded.name, loaded.version, loaded.labels) == ("cups", LAYER.version, LABELS)
    engine = ResNetEngine(to_arrays(model), loaded, EngineConfig(runtime="torch"))
    results = engine.classify([ClassifyRequest(crop, 3) for crop in pictures()[:50]])
    assert [result.class_ids[0] for result in results] == expected[:50].argmax(1).tolist()
    np.testing.assert_allclose([result.scores[0] for result in results], expected[:50].max(1), atol=1e-3)


def test_a_model_with_other_scores_is_not_written(
    weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before the file appears can fail."""
    monkeypatch.setattr(export_head, "run_onnx", lambda graph, pixels: np.full((len(pixels), 3), 1 / 3))
    with pytest.raises(EngineError, match="differ from the service's"):
        export_onnx(LAYER, weights, tmp_path / "cups.onnx")
    assert list(tmp_path.iterdir()) == []


def test_one_class_is_no_classifier(weights: WeightsConfig, tmp_path: Path) -> None:
    """The service needs two classes, so the error names the other format."""
    layer = LAYER._replace(labels=("mine",), weight=LAYER.weight[:1], bias=LAYER.bias[:1])
    with pytest.raises(InvalidParameterError, match="export it as onnx"):
        export_weights(layer, weights, tmp_path / "x.zip")
    export_onnx(layer, weights, tmp_path / "x.onnx")
