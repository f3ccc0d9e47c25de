"""Evaluation, calibration and publishing: the API's scores, calibrated confidence, names that never change."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from serve_app.classification_metrics import expected_calibration_error, reliability_diagram
from serve_app.cli.main import app
from serve_app.config import EngineConfig, WeightsConfig
from serve_app.errors import DatasetError, WeightsError
from serve_app.http.app import create_app
from serve_app.inference.card import load_card
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.head import Head
from serve_app.inference.storage import copy_to, has_copy
from serve_app.inference.torch_model import load_model
from serve_app.inference.weights import load_weights, republish
from serve_app.messages import ClassifyRequest
from serve_app.model_card import DEFAULT_ABSTAIN_BELOW, Calibration
from serve_app.preprocessing.transform import preprocess
from serve_app.training.calibrate import apply_temperature, calibrate, choose_threshold, fit_temperature
from serve_app.training.data import list_images
from serve_app.training.evaluate import evaluate
from serve_app.training.publish import publish_to
from tests.support.bucket import bucket
from tests.support.faults import full_disk
from tests.support.local_service import LocalService
from tests.support.photos import make_photo
from tests.support.weights import LABELS

PHOTOS = 18


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
    """Random weights whose card has a temperature and a threshold."""
    card = load_card(weights)
    values = {"temperature": 2.5, "abstain_below": 0.3, "precision": 0.9, "images": 1, "ece": 0, "ece_before": 0}
    calibration = Calibration.model_validate({**values, "fingerprint": "0" * 64})
    return republish(
        weights, card.model_copy(update={"calibration": calibration}), tmp_path_factory.mktemp("calibrated")
    )


def random_scores(n: int = 4000, classes: int = 5, sharpness: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated scores: the true classes are drawn from them."""
    random = np.random.default_rng(0)
    logits = sharpness * random.normal(size=(n, classes))
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return scores, (scores.cumsum(1) > random.random((n, 1))).argmax(1)


def test_evaluation_equals_the_api_image_by_image(calibrated: WeightsConfig, folder: Path) -> None:
    """Scores, classes and `abstain` of each file are those that a client gets, temperature included."""
    metrics, predictions, card = evaluate(calibrated, folder)
    with TestClient(create_app(LocalService(calibrated))) as http:
        for path, scores in zip(predictions.paths, predictions.scores, strict=True):
            (answer,) = http.post("/v1/classify", content=path.read_bytes()).json()["results"]
            served = {prediction["class_id"]: prediction["score"] for prediction in answer["predictions"]}
            assert np.abs(scores - [served[i] for i in range(len(LABELS))]).max() < 1e-4
            assert answer["uncertainty"]["abstain"] == (scores.max() < card.abstain_below)
    assert metrics["images"] == PHOTOS
    assert metrics["top1"] == round(float((predictions.scores.argmax(1) == predictions.targets).mean()), 4)
    assert metrics["abstain"]["below"] == card.abstain_below == 0.3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_fit_recovers_a_known_temperature(temperature: float) -> None:
    """Scores distorted by a known temperature get it back, and are calibrated again."""
    calibrated_scores, targets = random_scores()
    distorted = apply_temperature(calibrated_scores, 1 / temperature)
    fitted = fit_temperature(distorted.astype(np.float32), targets)
    assert fitted == pytest.approx(temperature, rel=0.1)
    restored = apply_temperature(distorted, fitted)
    diagram = reliability_diagram(restored.max(1), restored.argmax(1) == targets)
    assert expected_calibration_error(diagram) < 0.02


def test_the_threshold_keeps_its_precision_on_other_images() -> None:
    """A threshold chosen on one half of the images reaches its target on the other; a lower one is less precise."""
    scores, targets = random_scores(sharpness=2.0)
    confidence, correct = scores.max(1), scores.argmax(1) == targets
    threshold = choose_threshold(confidence[::2], correct[::2], 0.9)
    assert threshold is not None
    assert correct.mean() < 0.8
    confidence, correct = confidence[1::2], correct[1::2]
    precision = correct[confidence >= threshold].mean()
    assert precision >= 0.9
    assert correct[confidence >= threshold - 0.1].mean() < precision


def test_a_model_without_mistakes_still_abstains_on_5_percent() -> None:
    """The threshold rejects the least confident 5 % even if every answer is right."""
    confidence = np.linspace(0.5, 1, 200)
    threshold = choose_threshold(confidence, np.ones(200, bool), 0.9)
    assert threshold is not None
    assert (confidence < threshold).mean() == pytest.approx(0.05)


@pytest.mark.usefixtures("torch_runtime")
def test_an_unreachable_target_gives_no_threshold(weights: WeightsConfig, folder: Path, tmp_path: Path) -> None:
    """Random weights reach no precision of 0.95: their card has no threshold, and the default applies."""
    files, _ = list_images(folder, LABELS)
    spec, calibration = calibrate(weights, files, 0.95, tmp_path)
    assert calibration.abstain_below is None
    assert load_card(spec).abstain_below == DEFAULT_ABSTAIN_BELOW
    assert load_card(spec).calibration == calibration
    assert Path(spec.source).read_bytes() == Path(weights.source).read_bytes()


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_the_temperature_divides_logits_and_maps(
    weights: WeightsConfig, calibrated: WeightsConfig, runtime: str
) -> None:
    """Scores are softmax(logit / T) in every runtime, and the mean of a heat map still equals its logit."""
    pixels = preprocess(make_photo(3), load_card(weights).transform, 10**6).pixels
    engine = EngineConfig.model_validate({"runtime": runtime})
    before, after = (
        ResNetEngine(*load_weights(spec), engine).classify([ClassifyRequest(pixels, len(LABELS), "top")])[0]
        for spec in (weights, calibrated)
    )
    expected = apply_temperature(np.array([before.scores]), 2.5)[0]
    assert before.class_ids == after.class_ids
    assert np.abs(expected - after.scores).max() < 1e-5
    assert before.activation_map is not None
    assert after.activation_map is not None
    assert after.activation_map.logit == pytest.approx(before.activation_map.logit / 2.5, abs=1e-4)
    heat_map = after.activation_map
    assert abs(heat_map.values.mean() + heat_map.bias - heat_map.logit) < 1e-3


def test_the_head_does_not_change_the_model(calibrated: WeightsConfig) -> None:
    """A head with a temperature divides a copy of the last layer."""
    arrays, card = load_weights(calibrated)
    before = arrays["fc.weight"].copy()
    assert card.temperature != 1
    Head(arrays, card)
    assert bool((arrays["fc.weight"] == before).all())


def test_the_configuration_overrides_the_card(calibrated: WeightsConfig) -> None:
    """`abstain_below` of user_config applies if it is set, without a restart; else the card's applies."""
    service = LocalService(calibrated)
    with TestClient(create_app(service)) as http:

        def classify() -> tuple[float, bool]:
            (answer,) = http.post("/v1/classify", content=make_photo(5)).json()["results"]
            return answer["predictions"][0]["score"], answer["uncertainty"]["abstain"]

        score, abstains = classify()
        assert abstains == (score < 0.3)
        for threshold in (score + 0.01, score - 0.01):
            service.configure(abstain_below=threshold)
            assert classify() == (pytest.approx(score), score < threshold)
        assert http.get("/v1/models").json()["models"][0]["calibration"]["abstain_below"] == 0.3


@pytest.mark.usefixtures("torch_runtime")
def test_evaluate_command_writes_metrics_and_plots(folder: Path, calibrated: WeightsConfig, tmp_path: Path) -> None:
    """With a CSV: metrics on stdout, all of them and the plots in --out, the short ones in the card by --record."""
    rows = [f"{path},{path.parent.name}" for path in sorted(folder.rglob("*.jpg"))]
    data = tmp_path / "labels.csv"
    data.write_text("\n".join(["path,label", *rows]))
    spec = republish(calibrated, load_card(calibrated), tmp_path / "model")
    options = ["--out", str(tmp_path / "out"), "--record", "mine"]
    result = CliRunner().invoke(app, ["evaluate", spec.source, str(data), *options], catch_exceptions=False)
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    complete = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert complete["confusion"]
    assert complete["model"]["sha256"] == spec.sha256
    assert complete.items() >= printed.items()
    assert load_card(spec).metrics["mine"] == printed
    for name in ("confusion", "reliability", "mistakes"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("torch_runtime")
def test_calibrate_and_publish_commands_print_the_line_to_serve(
    weights: WeightsConfig, folder: Path, tmp_path: Path
) -> None:
    """`calibrate` leaves weights with a new card; `publish` prints where the registry has them."""
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["calibrate", weights.source, str(folder), str(out), "--precision", "0.9"])
    assert result.exit_code == 0
    assert f"source: {out / 'model.safetensors'}, sha256: {weights.sha256}" in result.stdout
    card = load_card(WeightsConfig(source=str(out / "model.safetensors"), sha256=weights.sha256))
    assert card.calibration is not None
    assert card.calibration.precision == 0.9
    result = CliRunner().invoke(app, ["publish", str(out / "model.safetensors"), str(tmp_path / "registry")])
    assert result.exit_code == 0
    (published,) = (tmp_path / "registry" / "resnet18").glob("random-*.safetensors")
    assert result.stdout == f"weights: {{source: {published}, sha256: {weights.sha256}}}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate", "demo", "none"], "path 'none' does not exist"),
        (["evaluate", "demo", ".", "--record", "x"], "--record needs a .safetensors file"),
        (["calibrate", "demo", ".", "out", "--precision", "1"], "'1' is not a number between 0 and 1"),
        (["train", ".", "out", "--schedule", "48x6"], "'48x6' is not like 48:6,64:14"),
        (["quantize", "demo", ".", "out", "--count", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], sentence: str) -> None:
    """One sentence on stderr names the argument; nothing is read or written."""
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_an_unusable_file_exits_with_1(tmp_path: Path) -> None:
    """The error is one line on stderr."""
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "none.safetensors"), str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "none.safetensors" in result.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file,class\n", "must name the columns path and label"),
        ("path,label\nnone.jpg,ant\n", "line 2: no such file: .*none.jpg"),
        ("path,label\n", "lists no images"),
    ],
)
def test_unusable_csvs_are_refused(text: str, sentence: str, tmp_path: Path) -> None:
    """The error names the CSV's line or column."""
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DatasetError, match=sentence):
        list_images(tmp_path / "labels.csv")


@pytest.fixture(params=["bucket", "folder"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a stand-in for S3, and a folder; nothing is cached yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    if request.param == "folder":
        yield str(tmp_path / "folder")
    else:
        with bucket("models"):
            yield "s3://models/registry"


def test_published_weights_are_served_from_where_they_are(
    calibrated: WeightsConfig, tmp_path: Path, registry: str
) -> None:
    """Publishing twice gives the same name, another card gives another name, and the service loads both."""
    source = Path(republish(calibrated, load_card(calibrated), tmp_path / "mine").source)
    first = publish_to(registry, source)
    assert first.source.startswith(f"{registry}/resnet18/random-")
    assert publish_to(registry, source) == first
    assert load_model(first)[1] == load_card(calibrated)
    republish(calibrated, load_card(calibrated).model_copy(update={"notes": "other"}), tmp_path / "mine")
    second = publish_to(registry, source)
    assert second.source != first.source
    assert (load_card(first).notes, load_card(second).notes) == ("", "other")


def test_an_unwritable_registry_is_named(calibrated: WeightsConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match=r"file/.*: cannot write to the registry"):
        publish_to(str(tmp_path / "file"), Path(calibrated.source))


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_published_file_that_was_cut_is_replaced(
    calibrated: WeightsConfig, registry: str, tmp_path: Path, suffix: str
) -> None:
    """A full disk or a power cut left a part of it; publishing again repairs it."""
    spec = publish_to(registry, Path(calibrated.source))
    (empty := tmp_path / "empty").touch()
    copy_to(empty, spec.source.removesuffix(".safetensors") + suffix)
    assert not has_copy(Path(calibrated.source).with_suffix(suffix), spec.source.removesuffix(".safetensors") + suffix)
    assert publish_to(registry, Path(calibrated.source)) == spec
    assert load_model(spec)[1] == load_card(calibrated)


def test_publishing_to_a_full_disk_leaves_no_file(
    calibrated: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(WeightsError, match=r"cannot write to the registry: OSError: .*No space left"):
            publish_to(str(tmp_path), Path(calibrated.source))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
