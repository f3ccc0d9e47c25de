"""Reads the card of a set of weights: labels, transform, origin.

A card that is missing or invalid is an error; no other card takes its place.
"""

from __future__ import annotations

from pydantic import ValidationError

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError, WeightsUnavailableError
from serve_app.inference.storage import open_address
from serve_app.model_card import ModelCard
from serve_app.paths import PACKAGE

DEMO = PACKAGE / "models" / "demo" / "model.safetensors"
# What torchvision says of ResNet18_Weights.IMAGENET1K_V1; importing it would take seconds and 300 MB. sha256 has the
# 8 digits that torchvision publishes of its own file.
IMAGENET_CARD = PACKAGE / "models" / "imagenet" / "model.json"


def load_card(spec: WeightsConfig) -> ModelCard:
    """Read the card of a set of weights.

    Raises:
        WeightsUnavailableError: The card is missing or its storage does not answer; a later try can succeed.
        WeightsError: The card is not valid.
    """
    if spec.source == "imagenet":
        return ModelCard.model_validate_json(IMAGENET_CARD.read_bytes())
    uri = weights_uri(spec)
    card_uri = uri.removesuffix(".safetensors") + ".json"
    try:
        with open_address(card_uri) as file:
            card = ModelCard.model_validate_json(file.read())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise WeightsError(f"weights {uri}: the card {card_uri} is not valid: {field}: {first['msg']}") from error
    except Exception as error:  # each storage backend has its own exceptions
        raise WeightsUnavailableError(f"weights {uri}: cannot read the card {card_uri}: {one_line(error)}") from error
    expected = spec.sha256 or card.sha256
    if card.sha256 != expected:
        raise WeightsError(f"weights {uri}: the configured sha256 {expected} differs from the card's {card.sha256}")
    return card


def weights_uri(spec: WeightsConfig) -> str:
    """Return the path or URI of the safetensors file; raise WeightsError if the setting names none."""
    if spec.source == "demo":
        return str(DEMO)
    if not spec.source.endswith(".safetensors"):
        raise WeightsError(
            f"weights {spec.source}: unknown name; use imagenet, demo, or the path or URI of a .safetensors file"
        )
    if spec.sha256 is None:
        raise WeightsError(f"weights {spec.source}: a path or URI needs its sha256 in the configuration")
    return spec.source


def one_line(error: Exception) -> str:
    """Return the type and message of an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
