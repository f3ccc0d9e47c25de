"""Load the weights that training starts from: named ones, a model with its card, or a backbone without a head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torchvision.models import ResNet, resnet18
from tqdm import tqdm

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError
from serve_app.inference.card import one_line
from serve_app.inference.torch_model import load_model
from serve_app.inference.weights import sha256, spec_of

BACKBONE_PX = 224  # the side of ImageNet's crops, on which backbones are trained


@dataclass(frozen=True)
class InitialWeights:
    """Weights to start from; the last layer of a backbone without one is random."""

    model: ResNet  # in eval mode
    sha256: str
    crop_px: int  # side of the images that it was trained for
    origin: dict[str, Any]  # for the card of what is trained from it


def load_initial_weights(name: str) -> InitialWeights | None:
    """Load weights by name or file; ``auto`` is ImageNet's if they can be downloaded, else the demo's.

    A .safetensors file without a card (.json) beside it is a backbone: torchvision's names, without ``fc``.

    Returns:
        The weights, or None for ``scratch``.

    Raises:
        WeightsError: The weights are not available or not those of a ResNet-18.
        OSError: The file cannot be read.
    """
    if name == "scratch":
        return None
    if name == "auto":
        try:
            return _of_model(WeightsConfig(source="imagenet"))
        except WeightsError as error:
            tqdm.write(f"starting from the demo model; ImageNet's weights are unavailable ({str(error)[:120]}…)")
            name = "demo"
    path = Path(name)
    if path.suffix == ".safetensors" and path.is_file() and not path.with_suffix(".json").exists():
        return _of_backbone(path)
    return _of_model(spec_of(name))


def _of_model(spec: WeightsConfig) -> InitialWeights:
    model, card = load_model(spec)
    origin = card.model_dump(include={"version", "sha256", "training"})
    return InitialWeights(model, card.sha256, card.transform.crop_px, origin)


def _of_backbone(path: Path) -> InitialWeights:
    model = resnet18()
    try:
        state = load_file(path)
        keys = model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, False)
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"weights {path}: not the backbone of a ResNet-18: {one_line(error)[:300]}") from error
    if wrong := sorted({*keys.missing_keys, *keys.unexpected_keys} - {"fc.weight", "fc.bias"}):
        reason = f"lacks or should not have {', '.join(wrong[:5])}"
        raise WeightsError(f"weights {path}: not the backbone of a ResNet-18 with torchvision's names: {reason}")
    digest = sha256(path)
    return InitialWeights(model.eval(), digest, BACKBONE_PX, {"backbone": path.name, "sha256": digest})
