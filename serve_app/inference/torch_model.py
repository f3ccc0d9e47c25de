"""Weights as a PyTorch model, for training, export and the runtimes that need torch; a model as published weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import ResNet, resnet18

from serve_app.config import WeightsConfig
from serve_app.files import atomic_write, create_folder
from serve_app.inference.card import one_line
from serve_app.inference.network import Arrays
from serve_app.inference.weights import load_weights, sha256, write_card
from serve_app.model_card import ModelCard


def load_model(spec: WeightsConfig) -> tuple[ResNet, ModelCard]:
    """Read and verify weights and build the model: eval mode, float32, on the CPU. Raises as ``load_weights``."""
    arrays, card = load_weights(spec)
    return to_model(arrays), card


def to_model(arrays: Arrays) -> ResNet:
    """Return torchvision's model with copies of these weights, in eval mode on the CPU."""
    model = resnet18(num_classes=len(arrays["fc.bias"]))
    state = model.state_dict() | {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    model.load_state_dict(state)
    return model.eval()


def to_arrays(model: ResNet) -> Arrays:
    """Return a model's weights as ``load_weights`` does; they share the model's memory."""
    return {
        name: value.detach().cpu().numpy() for name, value in model.state_dict().items() if value.is_floating_point()
    }


def publish(state: Mapping[str, Tensor], card: Mapping[str, Any], folder: Path) -> ModelCard:
    """Write ``model.safetensors`` in half precision, and ``model.json``; ``card`` has its fields without ``sha256``."""
    create_folder(folder)
    path = folder / "model.safetensors"
    write_tensors(to_half(state), path)
    complete = ModelCard(**card, sha256=sha256(path))
    write_card(complete, path)
    return complete


def publish_exact(state: Mapping[str, Tensor], card: Mapping[str, Any], path: Path) -> ModelCard:
    """Write weights and card; a tensor is in half precision only where that loses nothing."""
    half = to_half(state)
    exact = {
        name: half[name] if torch.equal(half[name].to(value.dtype), value) else value for name, value in state.items()
    }
    write_tensors({name: value.contiguous() for name, value in exact.items()}, path)
    complete = ModelCard(**card, sha256=sha256(path))
    write_card(complete, path)
    return complete


def to_half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in float16, which halves the file. Batch-norm statistics keep their type.

    Statistics of a network that takes pixels of 0 to 255 exceed float16's range: a variance of 90 000 became infinite.
    """
    return {
        name: (value.half() if value.is_floating_point() and ".running_" not in f".{name}" else value).contiguous()
        for name, value in state.items()
    }


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically; raise OSError if the disk is full or the folder cannot be written to."""
    with atomic_write(path) as unfinished:
        try:
            save_file(tensors, unfinished, metadata)
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({one_line(error)})") from error
