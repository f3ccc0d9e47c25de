"""Evaluation and calibration: the serving path's answers, known numbers, scores that keep what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.errors import DatasetError, WeightsError
from serve_app.http.app import create_app
from serve_app.inference.card import load_card
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.head import Head
from serve_app.inference.weights import load_model, republish
from serve_app.messages import ClassifyItem
from serve_app.model_card import ABSTAIN_BELOW, Calibration
from serve_app.preprocessing.transform import preprocess
from serve_app.training.calibrate import calibrate, choose_threshold, fit_temperature, tempered
from serve_app.training.data import list_images
from serve_app.training.evaluate import evaluate
from serve_app.training.metrics import abstaining, ece, reliability, summarize
from serve_app.training.publish import publish_to
from tests.conftest import LABELS, make_photo
from tests.support.local_service import LocalService

PHOTOS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in folders named like classes."""
    root = tmp_path_factory.mktemp("labeled")
    for i in range(PHOTOS):
        path = root / LABELS[i % len(LABELS)] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(make_photo(i, 120 + i, 100))
    return root


@pytest.fixture(scope="module")
def calibrated(weights: WeightsConfig, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> WeightsConfig:
    """Random weights with a temperature and a threshold by hand."""
    card = load_card(weights)
    values = {"temperature": 2.5, "abstain_below": 0.3, "precision": 0.9, "images": 1, "ece": 0, "ece_before": 0}
    made = Calibration.model_validate({**values, "fingerprint": "0" * 64})
    return republish(weights, card.model_copy(update={"calibration": made}), tmp_path_factory.mktemp("calibrated"))


def random_scores(n: int = 4000, classes: int = 5, sharpness: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that promise just what they keep, and the truth drawn from them."""
    random = np.random.default_rng(0)
    logits = sharpness * random.normal(size=(n, classes))
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return scores, (scores.cumsum(1) > random.random((n, 1))).argmax(1)


def test_evaluation_equals_the_api_image_by_image(calibrated: WeightsConfig, folder: Path) -> None:
    """Scores, classes and `abstain` of each file are what a client gets for it, temperature included."""
    result, found, card = evaluate(calibrated, folder)
    with TestClient(create_app(LocalService(calibrated))) as http:
        for path, scores in zip(found.paths, found.scores, strict=True):
            (answer,) = http.post("/v1/classify", content=path.read_bytes()).json()["results"]
            served = {each["class_id"]: each["score"] for each in answer["predictions"]}
            assert np.abs(scores - [served[i] for i in range(len(LABELS))]).max() < 1e-4
            assert answer["uncertainty"]["abstain"] == (scores.max() < card.abstain_below)
    assert result["images"] == PHOTOS
    assert result["top1"] == round(float((found.scores.argmax(1) == found.targets).mean()), 4)


def test_numbers_of_a_small_example() -> None:
    """Four images of three classes, by hand."""
    scores = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]])
    found = summarize(scores, np.array([0, 1, 1, 2]), ("a", "b", "c"), 0.55)
    assert (found["top1"], found["top5"]) == (0.5, 1.0)
    assert found["confusion"] == [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert found["classes"]["a"] == {"images": 1, "precision": 0.3333, "recall": 1.0}
    assert found["classes"]["b"] == {"images": 2, "precision": 1.0, "recall": 0.5}
    assert found["classes"]["c"] == {"images": 1, "precision": None, "recall": 0.0}
    assert found["ece"] == pytest.approx((0.3 + 0.6 + 0.2 + 0.5) / 4)  # each image is alone in its bin
    assert found["abstain"] == {"below": 0.55, "share": 0.25, "precision": 0.6667}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_again(temperature: float) -> None:
    """Scores spoilt by a known factor: it is found, and they keep again what they promise."""
    honest, targets = random_scores()
    spoilt = tempered(honest, 1 / temperature)
    found = fit_temperature(spoilt.astype(np.float32), targets)
    assert found == pytest.approx(temperature, rel=0.1)
    mended = tempered(spoilt, found)
    assert ece(reliability(mended.max(1), mended.argmax(1) == targets)) < 0.02


def test_the_threshold_keeps_its_precision_on_other_images() -> None:
    """Chosen on one half, it reaches the target on the other, and abstains no more than it must."""
    scores, targets = random_scores(sharpness=2.0)
    confidence, right = scores.max(1), scores.argmax(1) == targets
    threshold = choose_threshold(confidence[::2], right[::2], 0.9)
    assert threshold is not None
    assert right.mean() < 0.8
    other = abstaining(confidence[1::2], right[1::2], threshold)
    assert other["precision"] >= 0.9
    assert abstaining(confidence[1::2], right[1::2], threshold - 0.1)["precision"] < other["precision"]


def test_a_model_that_is_right_anyway_keeps_95_percent() -> None:
    confidence = np.linspace(0.5, 1, 200)
    threshold = choose_threshold(confidence, np.ones(200, bool), 0.9)
    assert threshold is not None
    assert abstaining(confidence, np.ones(200, bool), threshold)["share"] == pytest.approx(0.05)


def test_a_target_out_of_reach_gives_no_threshold(weights: WeightsConfig, folder: Path, tmp_path: Path) -> None:
    """Random weights are right by chance only: the card says so, and the default stays."""
    files, _ = list_images(folder, LABELS)
    made, found = calibrate(weights, files, 0.95, tmp_path)
    assert found.abstain_below is None
    assert load_card(made).abstain_below == ABSTAIN_BELOW
    assert load_card(made).calibration == found
    assert Path(made.source).read_bytes() == Path(weights.source).read_bytes()


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_the_temperature_divides_logits_and_maps(
    weights: WeightsConfig, calibrated: WeightsConfig, runtime: str
) -> None:
    """Scores are softmax(logit / T) in every runtime, and heat maps still add up to the logit they explain."""
    pixels = preprocess(make_photo(3), load_card(weights).transform, 10**6).pixels
    engine = EngineConfig.model_validate({"runtime": runtime})
    before, after = (
        ResNetEngine(*load_model(spec), engine).classify([ClassifyItem(pixels, len(LABELS), "top")])[0]
        for spec in (weights, calibrated)
    )
    expected = tempered(np.array([before.scores]), 2.5)[0]
    assert before.class_ids == after.class_ids
    assert np.abs(expected - after.scores).max() < 1e-5
    assert before.activation_map is not None
    assert after.activation_map is not None
    assert after.activation_map.logit == pytest.approx(before.activation_map.logit / 2.5, abs=1e-4)
    found = after.activation_map
    assert abs(found.values.mean() + found.bias - found.logit) < 1e-3


def test_the_head_leaves_the_model_alone(weights: WeightsConfig) -> None:
    model, _ = load_model(weights)
    before = model.fc.weight.clone()
    Head(model.fc, model.fc.weight.device, 3.0)
    assert bool((model.fc.weight == before).all())


def test_the_configuration_overrules_the_card(calibrated: WeightsConfig) -> None:
    """`abstain_below` of user_config if there is one, live; else that of the weights that answered."""
    service = LocalService(calibrated)
    with TestClient(create_app(service)) as http:

        def asked() -> tuple[float, bool]:
            (answer,) = http.post("/v1/classify", content=make_photo(5)).json()["results"]
            return answer["predictions"][0]["score"], answer["uncertainty"]["abstain"]

        score, abstains = asked()
        assert abstains == (score < 0.3)
        for threshold in (score + 0.01, score - 0.01):
            service.configure(abstain_below=threshold)
            assert asked() == (pytest.approx(score), score < threshold)
        assert http.get("/v1/models").json()["models"][0]["calibration"]["abstain_below"] == 0.3


def test_command_line_leaves_numbers_and_pictures(folder: Path, calibrated: WeightsConfig, tmp_path: Path) -> None:
    """A CSV instead of folders; JSON, pictures, and the numbers in the card under the name asked for."""
    rows = [f"{path},{path.parent.name}" for path in sorted(folder.rglob("*.jpg"))]
    data = tmp_path / "labels.csv"
    data.write_text("\n".join(["path,label", *rows]))
    spec = republish(calibrated, load_card(calibrated), tmp_path / "model")
    command = [sys.executable, "-m", "serve_app.training.evaluate", spec.source, str(data)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--record", "mine"], capture_output=True, text=True, check=True
    )
    printed = json.loads(done.stdout[done.stdout.index("{\n") :])  # runtimes say something too
    whole = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert whole["confusion"]
    assert whole["model"]["sha256"] == spec.sha256
    assert whole.items() >= printed.items()
    assert load_card(spec).metrics["mine"] == printed
    for name in ("confusion", "reliability", "mistakes"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file,class\n", "columns path and label"),
        ("path,label\nnone.jpg,ant\n", "line 2: no such file"),
        ("path,label\n", "lists no images"),
    ],
)
def test_unusable_csvs_are_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DatasetError, match=sentence):
        list_images(tmp_path / "labels.csv")


@pytest.mark.parametrize("root", ["memory://models", "folder"])
def test_published_weights_are_served_from_where_they_are(calibrated: WeightsConfig, tmp_path: Path, root: str) -> None:
    """Weights and card keep their name for good; another card is another name; the service loads them from there."""
    registry = root if "://" in root else str(tmp_path / root)
    source = Path(republish(calibrated, load_card(calibrated), tmp_path / "mine").source)
    first = publish_to(registry, source)
    assert first.source.startswith(f"{registry}/resnet18/random-")
    assert publish_to(registry, source) == first
    assert load_model(first)[1] == load_card(calibrated)
    republish(calibrated, load_card(calibrated).model_copy(update={"notes": "other"}), tmp_path / "mine")
    second = publish_to(registry, source)
    assert second.source != first.source
    assert (load_card(first).notes, load_card(second).notes) == ("", "other")


def test_a_registry_that_cannot_be_written_is_one_sentence(calibrated: WeightsConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="cannot be written"):
        publish_to(str(tmp_path / "file"), Path(calibrated.source))
