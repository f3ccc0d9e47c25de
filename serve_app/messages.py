"""What travels between the stages: a request for one image, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from serve_app.config import EngineConfig, FrozenModel, WeightsConfig
from serve_app.model_card import ABSTAIN_BELOW, ModelCard, ModelRef


class ImageInfo(FrozenModel):
    """What the header of one upload says."""

    format: str = Field(description="jpeg, png, webp, gif, bmp or tiff: found by content.")
    width: int = Field(description="Stored width in px, before orientation.")
    height: int = Field(description="Stored height in px, before orientation.")
    orientation: int = Field(description="EXIF orientation, 1-8; already honored.")


@dataclass(frozen=True)
class PreprocessedImage:
    """What leaves the preprocess stage.

    Attributes:
        pixels: uint8, (crop_px, crop_px, 3), RGB, values 0-255, upright.
        info: What the file's header said.
    """

    pixels: np.ndarray
    info: ImageInfo


class ImageStats(NamedTuple):
    """How a crop looks, 0-255: what drifts when cameras or light change.

    Attributes:
        brightness: Mean.
        contrast: Standard deviation.
        sharpness: Mean difference of neighbours in a row.
    """

    brightness: float
    contrast: float
    sharpness: float


Explain = Literal["top"] | int | None


@dataclass(frozen=True)
class ClassifyItem:
    """One image's place in a batch.

    Attributes:
        pixels: uint8, (crop_px, crop_px, 3), RGB, 0-255.
        top_k: Classes wanted, best first.
        explain: Class whose activation map is wanted: an id, ``"top"`` for the best, or none.
    """

    pixels: np.ndarray
    top_k: int
    explain: Explain = None


@dataclass(frozen=True)
class ActivationMap:
    """Where a class's evidence lies: ``values.mean() + bias == logit``.

    Attributes:
        class_id: The class explained.
        values: float32, (rows, columns), in logits.
        bias: The class's bias in the last layer.
        logit: The class's score before softmax.
    """

    class_id: int
    values: np.ndarray
    bias: float
    logit: float


@dataclass(frozen=True)
class Classification:
    """One image's answer.

    Attributes:
        class_ids: Best first.
        scores: Softmax probabilities of ``class_ids``.
        margin: Best minus second best probability.
        entropy: Of all probabilities, in nats.
        activation_map: Present when asked for.
    """

    class_ids: tuple[int, ...]
    scores: tuple[float, ...]
    margin: float
    entropy: float
    activation_map: ActivationMap | None = None


@dataclass(frozen=True)
class Named:
    """A classification in the words of the weights that made it, whichever serve by now.

    Attributes:
        classification: What the model said.
        model: The weights.
        labels: Of every class in it, by class id.
        abstain_below: Best scores under this are not sure, say the weights.
    """

    classification: Classification
    model: ModelRef
    labels: Mapping[int, str]
    abstain_below: float = ABSTAIN_BELOW


class ModelState(FrozenModel):
    """What one replica of a model serves."""

    card: ModelCard
    weights: WeightsConfig = Field(default=WeightsConfig(), description="Where others can have the same weights from.")
    engine: EngineConfig = Field(default=EngineConfig(), description="How they are run.")
    loading: str | None = Field(default=None, description="Weights that are being loaded to take over.")
    refused: str | None = Field(default=None, description="Why the last change was not made.")
