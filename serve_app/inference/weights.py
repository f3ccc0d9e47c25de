"""Find, verify and read a model's numbers.

Nothing falls back to anything else, and nothing is unpickled: published weights are
safetensors, and torchvision's own file is read by torch's tensors-only loader after
torchvision checked its hash.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import ResNet, ResNet18_Weights, resnet18

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError
from serve_app.inference.card import load_card, one_line, weights_uri
from serve_app.model_card import ModelCard

IMAGENET = ResNet18_Weights.IMAGENET1K_V1


def load_model(spec: WeightsConfig) -> tuple[ResNet, ModelCard]:
    """Read, verify and build the model, in eval mode, float32, on the CPU.

    Raises:
        WeightsError: The weights cannot be had, do not match their hash or do not fit
            ResNet-18 with the card's labels. The message is one sentence.
    """
    card = load_card(spec)
    state = _imagenet_state() if spec.source == "imagenet" else _safetensors_state(spec, card)
    model = resnet18(num_classes=len(card.labels))
    try:
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"weights {spec.source}: not a ResNet-18 with {len(card.labels)} classes: {detail}"
        ) from error
    return model.eval(), card


def publish(state: Mapping[str, Tensor], card: Mapping[str, Any], folder: Path) -> ModelCard:
    """Write ``model.safetensors`` (float16) and ``model.json`` into a folder.

    Args:
        state: State dict of a ResNet-18.
        card: The card's fields, without ``sha256``.
        folder: Made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    half = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}
    save_file(half, path)
    complete = ModelCard(**card, sha256=sha256(path))
    _write_card(complete, path)
    return complete


def republish(spec: WeightsConfig, card: ModelCard, folder: Path) -> WeightsConfig:
    """Write weights once more, with another card: the same file, or torchvision's numbers as safetensors.

    Args:
        spec: The weights.
        card: What is to stand beside them.
        folder: Made if it is missing; may be the weights' own.

    Returns:
        The weights written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if spec.source == "imagenet":
        path = folder / "imagenet.safetensors"
        save_file(dict(_imagenet_state()), path)
    else:
        source = _local_copy(weights_uri(spec), card.sha256)
        path = folder / source.name
        if not (path.exists() and path.samefile(source)):
            shutil.copyfile(source, path)
    digest = sha256(path)
    _write_card(card.model_copy(update={"sha256": digest}), path)
    return WeightsConfig(source=str(path), sha256=digest)


def spec_of(text: str) -> WeightsConfig:
    """Read a command line's weights: a name, or a local file, trusted as it is.

    Raises:
        OSError: No such file.
    """
    return WeightsConfig(source=text, sha256=sha256(Path(text)) if text.endswith(".safetensors") else None)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def imagenet_file() -> Path:
    """Where torchvision keeps the ImageNet weights once they are downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(IMAGENET.url).path).name


def _write_card(card: ModelCard, weights: Path) -> None:
    weights.with_suffix(".json").write_text(json.dumps(card.model_dump(mode="json"), indent=2) + "\n")


def _imagenet_state() -> Mapping[str, Tensor]:
    try:
        state: Mapping[str, Tensor] = IMAGENET.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # URLError, hash mismatch, full disk, unreadable cache
        raise WeightsError(
            f"weights imagenet: cannot download {IMAGENET.url} or read {imagenet_file()}: {one_line(error)}"
        ) from error
    return state


def _safetensors_state(spec: WeightsConfig, card: ModelCard) -> Mapping[str, Tensor]:
    path = _local_copy(weights_uri(spec), card.sha256)
    try:
        if (found := sha256(path)) != card.sha256:
            raise WeightsError(f"weights {spec.source}: sha256 is {found}, expected {card.sha256}")
        state: Mapping[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"weights {spec.source}: cannot read the file: {one_line(error)}") from error
    return state


def _local_copy(uri: str, digest: str) -> Path:
    """The file itself if it is local, else a copy cached by its hash beside torch's downloads."""
    if "://" not in uri:
        return Path(uri)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / f"{digest}.safetensors"
    if cached.exists():
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with (
            fsspec.open(uri, "rb") as source,
            tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as partial,
        ):
            shutil.copyfileobj(source, partial)
        # Checked before it takes the cache's name: a bad download must not stay.
        if (found := sha256(Path(partial.name))) != digest:
            Path(partial.name).unlink()
            raise WeightsError(f"weights {uri}: sha256 is {found}, expected {digest}")
        Path(partial.name).replace(cached)
    except WeightsError:
        raise
    except Exception as error:  # every storage backend raises its own kind
        raise WeightsError(f"weights {uri}: cannot download: {one_line(error)}") from error
    return cached
