"""What travels between the stages: a request for one image, and its result.

``ClassifyRequest`` goes from HTTP to the model, ``ClassifyResult`` or a ``ServiceError`` comes back. The same two types
are used inside one process and between processes, where they are pickled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import Field

from serve_app.config import EngineConfig, FrozenModel, LimitsConfig, WeightsConfig
from serve_app.deadline import Deadline
from serve_app.model_card import DEFAULT_ABSTAIN_BELOW, ModelCard, ModelRef

Explain = Literal["top"] | int | None
Image = TypeVar("Image", bytes, np.ndarray)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The HTTP request that an image came with.

    Attributes:
        request_id: Names the request in logs, errors and the prediction log.
        index: Place of the image in the request, from 0.
        deadline: When the client stops waiting.
        traceparent: W3C trace context of the request's span; None when the request is not traced.
    """

    request_id: str
    index: int
    deadline: Deadline
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class ClassifyRequest(Generic[Image]):
    """One image to classify.

    Attributes:
        image: The encoded file before preprocessing; after it the crop, uint8, (crop_px, crop_px, 3), RGB, 0-255.
        top_k: Number of classes in the result, best first.
        explain: Class whose activation map is returned: an id, ``"top"`` for the best class, or None.
        context: The HTTP request; None in a batch job or a health check.
        max_pixels: Largest number of pixels that the file's header may declare.
        measure_stats: Measure brightness, contrast and sharpness of the crop for the prediction log.
    """

    image: Image
    top_k: int
    explain: Explain = None
    context: RequestContext | None = None
    max_pixels: int = LimitsConfig().max_pixels
    measure_stats: bool = False

    def with_crop(self, crop: np.ndarray) -> ClassifyRequest[np.ndarray]:
        """Return the same request with the preprocessed image."""
        return ClassifyRequest(crop, self.top_k, self.explain, self.context, self.max_pixels, self.measure_stats)


class ImageInfo(FrozenModel):
    """What the header of an uploaded file says."""

    format: str = Field(description="jpeg, png, webp, gif, bmp or tiff; detected from the content.")
    width: int = Field(description="Stored width in px, before the EXIF orientation is applied.")
    height: int = Field(description="Stored height in px, before the EXIF orientation is applied.")
    orientation: int = Field(description="EXIF orientation, 1-8; the service has applied it.")


class ImageStats(NamedTuple):
    """Statistics of a crop's green channel, 0-255; they drift when cameras or light change.

    Attributes:
        brightness: Mean.
        contrast: Standard deviation.
        sharpness: Mean absolute difference of horizontal neighbors.
    """

    brightness: float
    contrast: float
    sharpness: float


@dataclass(frozen=True, slots=True)
class ActivationMap:
    """Class activation map (Zhou et al. 2016): where the evidence for a class lies; ``values.mean() + bias == logit``.

    Attributes:
        class_id: The class explained.
        label: Its name.
        values: float32, (rows, columns), in logits.
        bias: The class's bias in the last layer.
        logit: The class's score before softmax.
    """

    class_id: int
    label: str
    values: np.ndarray
    bias: float
    logit: float


@dataclass(slots=True)
class ClassifyResult:
    """The classes of one image. The engine makes it; each stage on the way back adds what it has measured.

    Attributes:
        class_ids: Best first.
        labels: Names of ``class_ids``.
        scores: Softmax probabilities of ``class_ids``.
        margin: Best minus second best probability.
        entropy: Of all probabilities, in nats.
        model: The weights that gave this result.
        abstain_below: Best scores under this threshold count as "not sure", says the model card.
        activation_map: Present when the request asked for it.
        batch_size: Images that shared the model's batch.
        timings_ms: ``decode``, ``queue`` and ``model``, as far as stages have measured them.
        image: What the file's header says.
        image_stats: Present when the request asked for it.
    """

    class_ids: tuple[int, ...]
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    margin: float
    entropy: float
    model: ModelRef
    abstain_below: float = DEFAULT_ABSTAIN_BELOW
    activation_map: ActivationMap | None = None
    batch_size: int = 1
    timings_ms: dict[str, float] = field(default_factory=dict)
    image: ImageInfo | None = None
    image_stats: ImageStats | None = None


class ModelState(FrozenModel):
    """What one model replica serves."""

    card: ModelCard
    weights: WeightsConfig = Field(default=WeightsConfig(), description="Where a batch job finds the same weights.")
    engine: EngineConfig = Field(default=EngineConfig(), description="How the replica runs them.")
    loading: str | None = Field(default=None, description="Weights that are being loaded to replace these.")
    refused: str | None = Field(default=None, description="Why the last change of settings was refused.")
