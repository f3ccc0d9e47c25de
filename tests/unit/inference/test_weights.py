"""Weights: found, verified, never replaced by others; each failure is one sentence."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError
from serve_app.inference import weights as module
from serve_app.inference.card import DEMO, load_card
from serve_app.inference.weights import load_model, sha256
from tests.support.weights import LABELS, publish_random


def fails(spec: WeightsConfig) -> str:
    """The sentence that loading ends with."""
    with pytest.raises(WeightsError) as caught:
        load_model(spec)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_published_weights_load(weights: WeightsConfig) -> None:
    """What was published comes back, with labels and transform, ready to serve."""
    model, card = load_model(weights)
    assert card.labels == LABELS
    assert card.transform.crop_px == 96
    assert not model.training
    assert model.fc.weight.dtype == torch.float32


def test_the_demo_model_is_shipped_whole() -> None:
    """Ten classes, its hash matches, and its file is as small as promised."""
    model, card = load_model(WeightsConfig(source="demo"))
    assert model.fc.out_features == len(card.labels) == 10
    assert DEMO.stat().st_size < 23e6
    assert {"data", "command", "seed", "minutes"} <= set(card.training)
    assert card.metrics


def test_a_uri_is_fetched_once_and_verified(
    weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any fsspec address; the copy is cached under its hash."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    uri = f"file://{weights.source}"
    load_model(WeightsConfig(source=uri, sha256=weights.sha256))
    assert sha256(tmp_path / "hub" / "checkpoints" / f"{weights.sha256}.safetensors") == weights.sha256


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    spec = publish_random(tmp_path)
    with Path(spec.source).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert "sha256 is" in fails(spec)


def test_another_sha256_is_refused(weights: WeightsConfig) -> None:
    assert "differs from the card's" in fails(WeightsConfig(source=weights.source, sha256="0" * 64))


def test_a_bad_download_does_not_stay(weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A remote file that does not match leaves nothing in the cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    spec = publish_random(tmp_path)
    Path(spec.source).write_bytes(b"something else")
    assert "sha256 is" in fails(WeightsConfig(source=f"file://{spec.source}", sha256=spec.sha256))
    assert list((tmp_path / "cache" / "hub" / "checkpoints").iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    sentence = fails(WeightsConfig(source=str(tmp_path / "none.safetensors"), sha256="0" * 64))
    assert "none.json" in sentence


def test_an_unknown_name_is_named() -> None:
    assert "imagenett: unknown name; use imagenet, demo" in fails(WeightsConfig(source="imagenett"))


def test_a_path_needs_its_sha256(weights: WeightsConfig) -> None:
    assert "needs its sha256" in fails(WeightsConfig(source=weights.source))


def test_a_card_that_is_not_valid_says_where(tmp_path: Path) -> None:
    spec = publish_random(tmp_path)
    card = tmp_path / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"labels": ["one"]}))
    assert "not valid: labels" in fails(spec)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    spec = publish_random(tmp_path)
    save_file({"fc.weight": torch.zeros(6, 3)}, spec.source)
    digest = sha256(Path(spec.source))
    card = tmp_path / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": digest}))
    assert "not a ResNet-18 with 6 classes" in fails(WeightsConfig(source=spec.source, sha256=digest))


def test_pickles_are_never_read(tmp_path: Path) -> None:
    """A pickle under a safetensors name is refused without being run."""
    spec = publish_random(tmp_path)
    torch.save({"fc.weight": torch.zeros(1)}, spec.source)
    digest = sha256(Path(spec.source))
    card = tmp_path / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": digest}))
    assert "cannot read the file" in fails(WeightsConfig(source=spec.source, sha256=digest))


def test_imagenet_card_is_torchvisions() -> None:
    """Labels and transform come from torchvision's enum; nothing is typed again, nothing is downloaded."""
    card = load_card(WeightsConfig(source="imagenet"))
    assert card.labels == tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
    assert (card.transform.resize_px, card.transform.crop_px) == (256, 224)
    assert card.sha256 in ResNet18_Weights.IMAGENET1K_V1.url


def test_imagenet_without_a_network_fails_and_nothing_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_args: object, **_options: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    assert "weights imagenet: cannot download" in fails(WeightsConfig(source="imagenet"))


def test_imagenet_that_is_not_imagenet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's own hash check stands between a download and the cache."""
    impostor = tmp_path / "impostor.pth"
    torch.save({}, impostor)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        type(module.IMAGENET),
        "url",
        property(lambda _self: impostor.as_uri().replace("impostor", "resnet18-f37072fd")),
        raising=False,
    )
    impostor.rename(tmp_path / "resnet18-f37072fd.pth")
    sentence = fails(WeightsConfig(source="imagenet"))
    assert "invalid hash value" in sentence
