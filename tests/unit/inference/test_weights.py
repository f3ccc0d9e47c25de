"""Weights: found, verified, never replaced by others; each failure is one sentence."""

from __future__ import annotations

import json
import os
import urllib.error
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import ResNet18_Weights

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError, WeightsUnavailableError
from serve_app.inference import imagenet_download
from serve_app.inference import weights as module
from serve_app.inference.card import load_card
from serve_app.inference.child import ChildError
from serve_app.inference.torch_model import load_model, publish
from serve_app.inference.weights import load_weights, republish, sha256
from serve_app.paths import torch_checkpoints
from tests.support.bucket import bucket
from tests.support.faults import POWER_CUT, DiskRecorder, full_disk
from tests.support.weights import LABELS, MEAN, STD, publish_random

TRANSFORM = {"resize_px": 96, "crop_px": 96, "mean": MEAN, "std": STD}


def convert_here(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Convert ImageNet's weights in this process, with an empty cache, so that a test can change torchvision."""

    def run(_module: str) -> str:
        try:
            imagenet_download.convert()
        except WeightsError as error:  # a process of its own prints it
            raise ChildError(str(error)) from None
        return ""

    monkeypatch.setenv("TORCH_HOME", str(cache))
    monkeypatch.setattr(module, "run_child", run)


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


def test_large_statistics_survive_publishing(tmp_path: Path) -> None:
    """A variance that float16 cannot hold comes back as it was; it made every feature zero."""
    state = load_model(publish_random(tmp_path / "a"))[0].state_dict()
    state["bn1.running_var"] = state["bn1.running_var"] + 90_000
    card = {"name": "resnet18", "version": "1", "labels": LABELS, "transform": TRANSFORM}
    digest = publish(state, card, tmp_path / "b").sha256
    model, _ = load_model(WeightsConfig(source=str(tmp_path / "b" / "model.safetensors"), sha256=digest))
    assert torch.equal(model.bn1.running_var, state["bn1.running_var"])


def test_a_uri_is_fetched_once_and_verified(
    weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any address; the copy is cached under its hash."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    uri = f"file://{weights.source}"
    load_model(WeightsConfig(source=uri, sha256=weights.sha256))
    assert sha256(tmp_path / "hub" / "checkpoints" / f"{weights.sha256}.safetensors") == weights.sha256


def test_weights_come_from_a_bucket(weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Card and weights, with the packages of the image; what is missing there may come later."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = WeightsConfig(source="s3://models/a/model.safetensors", sha256=weights.sha256)
    with bucket("models") as s3:
        with pytest.raises(WeightsUnavailableError, match=r"cannot read the card s3://models/a/model\.json"):
            load_model(spec)
        for suffix in (".json", ".safetensors"):
            s3.upload_file(str(Path(weights.source).with_suffix(suffix)), "models", f"a/model{suffix}")
        assert load_model(spec)[1].labels == LABELS


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
    """The card in the package says what torchvision's enum says."""
    card, weights = load_card(WeightsConfig(source="imagenet")), ResNet18_Weights.IMAGENET1K_V1
    transform = weights.transforms()
    assert card.labels == tuple(weights.meta["categories"])
    assert (card.transform.resize_px, card.transform.crop_px) == (transform.resize_size[0], transform.crop_size[0])
    assert (card.transform.mean, card.transform.std) == (tuple(transform.mean), tuple(transform.std))
    assert Path(urlsplit(weights.url).path).name == f"resnet18-{card.sha256}.pth"
    assert (card.metrics, card.training["recipe"]) == (weights.meta["_metrics"], weights.meta["recipe"])


def test_bfloat16_and_float64_become_float32(tmp_path: Path) -> None:
    """Types that NumPy lacks or the network does not use."""
    spec = publish_random(tmp_path)
    state = load_file(spec.source)
    state["fc.weight"], state["fc.bias"] = state["fc.weight"].bfloat16(), state["fc.bias"].double()
    save_file(state, spec.source)
    digest = sha256(Path(spec.source))
    card = tmp_path / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": digest}))
    arrays, _ = load_weights(WeightsConfig(source=spec.source, sha256=digest))
    for name in ("fc.weight", "fc.bias"):
        assert arrays[name].dtype == np.float32
        np.testing.assert_array_equal(arrays[name], state[name].float().numpy())


def test_imagenet_without_a_network_fails_and_nothing_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_args: object, **_options: object) -> None:
        raise urllib.error.URLError("no network")

    convert_here(monkeypatch, tmp_path)
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    assert "weights imagenet: cannot download" in fails(WeightsConfig(source="imagenet"))


def test_imagenet_that_is_not_imagenet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's own hash check stands between a download and the cache."""
    impostor = tmp_path / "impostor.pth"
    torch.save({}, impostor)
    convert_here(monkeypatch, tmp_path)
    monkeypatch.setattr(
        type(imagenet_download.WEIGHTS),
        "url",
        property(lambda _self: impostor.as_uri().replace("impostor", "resnet18-f37072fd")),
        raising=False,
    )
    impostor.rename(tmp_path / "resnet18-f37072fd.pth")
    sentence = fails(WeightsConfig(source="imagenet"))
    assert "invalid hash value" in sentence


def test_torchs_folder_is_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch.hub looks, without importing it."""
    assert torch_checkpoints() == Path(torch.hub.get_dir(), "checkpoints")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert torch_checkpoints() == Path(torch.hub.get_dir(), "checkpoints")
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert torch_checkpoints() == Path(torch.hub.get_dir(), "checkpoints")


@pytest.mark.parametrize("content", POWER_CUT)
def test_a_cached_copy_that_a_power_cut_emptied_is_fetched_again(
    weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """It refused to load for ever."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = WeightsConfig(source=f"file://{weights.source}", sha256=weights.sha256)
    cached = tmp_path / "hub" / "checkpoints" / f"{weights.sha256}.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content)
    assert load_model(spec)[1].labels == LABELS
    assert sha256(cached) == weights.sha256


def test_a_cached_imagenet_file_that_a_power_cut_emptied_is_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchvision checks downloads, not its cache: the file is deleted, and partial downloads of killed processes."""
    convert_here(monkeypatch, tmp_path)
    cached = imagenet_download.downloaded_file()
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    partial = cached.with_name(f"{cached.name}.5f0c.partial")
    partial.write_bytes(b"x")
    os.utime(partial, (0, 0))
    downloads: list[str] = []

    def download(url: str, target: str, *_args: object, **_options: object) -> None:
        downloads.append(target)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    assert "weights imagenet: cannot download" in fails(WeightsConfig(source="imagenet"))
    assert downloads == [str(cached)]
    assert list(cached.parent.iterdir()) == []


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_download_to_a_full_disk_leaves_nothing(
    weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """The error says that a later try can succeed."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = WeightsConfig(source=f"file://{weights.source}", sha256=weights.sha256)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, full_disk)
        with pytest.raises(WeightsUnavailableError, match="No space left"):
            load_model(spec)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert load_model(spec)[1].labels == LABELS


def test_a_download_that_breaks_off_leaves_nothing(
    weights: WeightsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does one that never began; old partial files of killed processes go with the next download."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    killed = folder / f".{weights.sha256}.safetensors.0a1b2c3d"
    killed.write_bytes(b"x")
    os.utime(killed, (0, 0))

    def break_off(source: IO[bytes], target: IO[bytes]) -> None:
        target.write(source.read(100))
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("serve_app.inference.weights.shutil.copyfileobj", break_off)
    with pytest.raises(WeightsUnavailableError, match="Connection reset"):
        load_model(WeightsConfig(source=f"file://{weights.source}", sha256=weights.sha256))
    assert list(folder.iterdir()) == []


def test_missing_weights_may_come_back_and_wrong_ones_do_not(tmp_path: Path) -> None:
    """A job waits for the first, and fails at once for the others."""
    spec = publish_random(tmp_path)
    Path(spec.source).unlink()
    with pytest.raises(WeightsUnavailableError):
        load_model(spec)
    Path(spec.source).write_bytes(b"wrong")
    with pytest.raises(WeightsError) as caught:
        load_model(spec)
    assert not caught.value.retryable


def test_published_weights_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and card are fsynced before they get their names; so are copies of them."""
    disk = DiskRecorder(monkeypatch)
    spec = publish_random(tmp_path / "a")
    republish(spec, load_card(spec), tmp_path / "b")
    assert disk.renamed == {"model.safetensors", "model.json"}
    assert (disk.unsafe, disk.unnamed) == ([], [])


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_publishing_to_a_full_disk_keeps_the_old_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    spec = publish_random(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, full_disk)
        with pytest.raises(OSError, match="No space left"):
            publish_random(tmp_path, seed=1, version="other")
    assert load_model(spec)[1].version == "random"
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "model.json"}
