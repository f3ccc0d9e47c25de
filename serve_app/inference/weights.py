"""Finds, verifies, reads and publishes weights.

Weights that are missing or do not match their hash are an error; no other weights take their place. Nothing is
unpickled: published weights are safetensors, and torch's tensors-only loader reads torchvision's file after torchvision
has checked its hash.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import ResNet, ResNet18_Weights, resnet18

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError, WeightsUnavailableError
from serve_app.files import atomic_write, create_folder, delete_partial_files
from serve_app.inference.card import load_card, one_line, weights_uri
from serve_app.inference.storage import open_address
from serve_app.model_card import ModelCard

IMAGENET = ResNet18_Weights.IMAGENET1K_V1


def load_model(spec: WeightsConfig) -> tuple[ResNet, ModelCard]:
    """Read and verify weights and build the model: eval mode, float32, on the CPU.

    Raises:
        WeightsUnavailableError: The weights cannot be read or downloaded now; a later try can succeed.
        WeightsError: The weights do not match their hash, or do not fit a ResNet-18 with the card's number of labels.
    """
    card = load_card(spec)
    state = _imagenet_state() if spec.source == "imagenet" else _safetensors_state(spec, card)
    model = resnet18(num_classes=len(card.labels))
    try:
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except RuntimeError as error:
        reason = f"not a ResNet-18 with {len(card.labels)} classes: {' '.join(str(error).split())[:300]}"
        raise WeightsError(f"weights {spec.source}: {reason}") from error
    return model.eval(), card


def publish(state: Mapping[str, Tensor], card: Mapping[str, Any], folder: Path) -> ModelCard:
    """Write ``model.safetensors`` in half precision, and ``model.json``; ``card`` has its fields without ``sha256``."""
    create_folder(folder)
    path = folder / "model.safetensors"
    write_tensors(to_half(state), path)
    complete = ModelCard(**card, sha256=sha256(path))
    _write_card(complete, path)
    return complete


def publish_exact(state: Mapping[str, Tensor], card: Mapping[str, Any], path: Path) -> ModelCard:
    """Write weights and card; a tensor is in half precision only where that loses nothing."""
    half = to_half(state)
    exact = {
        name: half[name] if torch.equal(half[name].to(value.dtype), value) else value for name, value in state.items()
    }
    write_tensors({name: value.contiguous() for name, value in exact.items()}, path)
    complete = ModelCard(**card, sha256=sha256(path))
    _write_card(complete, path)
    return complete


def to_half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in float16, which halves the file. Batch-norm statistics keep their type.

    Statistics of a network that takes pixels of 0 to 255 exceed float16's range: a variance of 90 000 became infinite.
    """
    return {
        name: (value.half() if value.is_floating_point() and ".running_" not in f".{name}" else value).contiguous()
        for name, value in state.items()
    }


def republish(spec: WeightsConfig, card: ModelCard, folder: Path) -> WeightsConfig:
    """Copy weights to a folder, which may be their own, with another card; torchvision's weights become safetensors.

    Returns:
        The settings that load the copy.
    """
    create_folder(folder)
    if spec.source == "imagenet":
        path = folder / "imagenet.safetensors"
        write_tensors(dict(_imagenet_state()), path)
    else:
        source = _local_copy(weights_uri(spec), card.sha256)
        path = folder / source.name
        if not (path.exists() and path.samefile(source)):
            with atomic_write(path) as unfinished:
                shutil.copyfile(source, unfinished)
    digest = sha256(path)
    _write_card(card.model_copy(update={"sha256": digest}), path)
    return WeightsConfig(source=str(path), sha256=digest)


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically; raise OSError if the disk is full or the folder cannot be written to."""
    with atomic_write(path) as unfinished:
        try:
            save_file(tensors, unfinished, metadata)
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({one_line(error)})") from error


def spec_of(text: str) -> WeightsConfig:
    """Convert the argument of a command line to settings: a name, or a local file that exists, by its hash."""
    return WeightsConfig(source=text, sha256=sha256(Path(text)) if text.endswith(".safetensors") else None)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def imagenet_file() -> Path:
    """Return the path where torchvision caches the ImageNet weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(IMAGENET.url).path).name


def _write_card(card: ModelCard, weights: Path) -> None:
    with atomic_write(weights.with_suffix(".json")) as unfinished:
        unfinished.write_text(json.dumps(card.model_dump(mode="json"), indent=2) + "\n")


def _imagenet_state() -> Mapping[str, Tensor]:
    try:
        cached, digest = imagenet_file(), load_card(WeightsConfig(source="imagenet")).sha256
        delete_partial_files(cached)
        if cached.exists() and not sha256(cached).startswith(digest):  # torch checks a download, not its cache
            cached.unlink()
        state: Mapping[str, Tensor] = IMAGENET.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no connection, hash mismatch, full disk, unreadable cache
        reason = f"cannot download {IMAGENET.url} or read {imagenet_file()}: {one_line(error)}"
        raise WeightsUnavailableError(f"weights imagenet: {reason}") from error
    return state


def _safetensors_state(spec: WeightsConfig, card: ModelCard) -> Mapping[str, Tensor]:
    path = _local_copy(weights_uri(spec), card.sha256)
    try:
        if (found := sha256(path)) != card.sha256:
            raise WeightsError(f"weights {spec.source}: sha256 is {found}, expected {card.sha256}")
        state: Mapping[str, Tensor] = load_file(path)
    except OSError as error:
        raise WeightsUnavailableError(f"weights {spec.source}: cannot read the file: {one_line(error)}") from error
    except SafetensorError as error:
        raise WeightsError(f"weights {spec.source}: cannot read the file: {one_line(error)}") from error
    return state


def _local_copy(uri: str, digest: str) -> Path:
    """Return the file itself if it is local, else a copy that is cached by hash beside torch's downloads."""
    if "://" not in uri:
        return Path(uri)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / f"{digest}.safetensors"
    try:
        if cached.exists() and sha256(cached) == digest:  # a power cut can leave a file that is cut
            return cached
        create_folder(cached.parent)
        delete_partial_files(cached)
        with atomic_write(cached) as partial:
            with open_address(uri) as source, partial.open("wb") as copy:
                shutil.copyfileobj(source, copy)
            # The hash is checked before the file takes its final name, so a bad download is never cached.
            if (found := sha256(partial)) != digest:
                raise WeightsError(f"weights {uri}: sha256 is {found}, expected {digest}")
    except WeightsError:
        raise
    except Exception as error:  # each storage backend has its own exceptions
        raise WeightsUnavailableError(f"weights {uri}: cannot download: {one_line(error)}") from error
    return cached
