"""What travels between the stages: a request for one image, and its result.

``ClassifyRequest`` goes from HTTP to the model, ``ClassifyResult`` or a ``ServiceError`` comes back. For an image by
URL, ``RemoteImage`` goes to the Preprocessor first, and the encoded file comes back. The same types are used inside one
process and between processes, where they are pickled.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import Field

from serve_app.config import EngineConfig, LimitsConfig, WeightsConfig
from serve_app.deadline import Deadline
from serve_app.errors import ServiceError
from serve_app.image_url import ImageUrl
from serve_app.images_by_url_config import ImagesByUrlConfig
from serve_app.model_card import DEFAULT_ABSTAIN_BELOW, ModelCard, ModelRef
from serve_app.settings import FrozenModel

Explain = Literal["top"] | int | None
Features = Literal["pooled", "map"] | None
EMBEDDING_SIZE = 512  # channels of a ResNet-18's last feature map
Image = TypeVar("Image", bytes, np.ndarray)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The HTTP request that an image came with."""

    request_id: str  # names the request in logs, errors and the prediction log; a client may send its own, or the same
    index: int  # place of the image in the request, from 0
    deadline: Deadline  # when the client stops waiting
    traceparent: str | None = None  # W3C trace context of the request's span; None when the request is not traced
    request_uuid: str = field(default_factory=lambda: uuid.uuid4().hex)  # this server's own id of the request
    caller: str | None = None  # name of the API key, else address of the client; callers take turns in queues


@dataclass(frozen=True, slots=True)
class ClassifyRequest(Generic[Image]):
    """One image to classify."""

    image: Image  # the encoded file before preprocessing; then the crop, uint8, (crop_px, crop_px, 3), RGB, 0-255
    top_k: int  # number of classes in the result, best first
    explain: Explain = None  # class whose activation map is returned: an id, "top" for the best class, or None
    context: RequestContext | None = None  # the HTTP request; None in a batch job or a health check
    max_pixels: int = LimitsConfig().max_pixels  # largest number of pixels that the file's header may declare
    measure_stats: bool = False  # measure brightness, contrast and sharpness of the crop for the prediction log
    features: Features = None  # what the result carries of the network's last feature map: its mean, all of it, or none
    mirror: bool = False  # mirror the crop left to right: a second view of a photo

    def with_crop(self, crop: np.ndarray) -> ClassifyRequest[np.ndarray]:
        """Return the same request with the preprocessed image."""
        return ClassifyRequest(
            crop,
            self.top_k,
            self.explain,
            self.context,
            self.max_pixels,
            self.measure_stats,
            self.features,
            self.mirror,
        )


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """One image to fetch, with the settings of the ingress that asks for it."""

    url: ImageUrl
    config: ImagesByUrlConfig
    limits: LimitsConfig
    context: RequestContext


class ImageInfo(FrozenModel):
    """What the header of an uploaded file says."""

    format: str = Field(description="jpeg, png, webp, gif, bmp, tiff, avif or heif; detected from the content.")
    width: int = Field(description="Stored width in px, before the EXIF orientation is applied.")
    height: int = Field(description="Stored height in px, before the EXIF orientation is applied.")
    orientation: int = Field(description="EXIF orientation, 1-8; the service has applied it.")


class ImageStats(NamedTuple):
    """Statistics of a crop's green channel, 0-255; they drift when cameras or light change."""

    brightness: float  # mean
    contrast: float  # standard deviation
    sharpness: float  # mean absolute difference of horizontal neighbors


@dataclass(frozen=True, slots=True)
class ActivationMap:
    """Class activation map (Zhou et al. 2016): where a class's evidence lies; ``values.mean() + bias == logit``."""

    class_id: int
    label: str
    values: np.ndarray  # float32, (rows, columns), in logits
    bias: float  # of the class in the last layer
    logit: float  # the class's score before softmax


@dataclass(slots=True)
class ClassifyResult:
    """The classes of one image. The engine makes it; each stage on the way back adds what it has measured."""

    class_ids: tuple[int, ...]  # best first
    labels: tuple[str, ...]  # names of ``class_ids``
    scores: tuple[float, ...]  # softmax probabilities of ``class_ids``
    margin: float  # best minus second best probability
    entropy: float  # of all probabilities, in nats
    model: ModelRef  # the weights that gave this result
    abstain_below: float = DEFAULT_ABSTAIN_BELOW  # best scores under it count as "not sure", says the model card
    activation_map: ActivationMap | None = None  # present when the request asked for it
    features: np.ndarray | None = None  # float32; "pooled" is the embedding, (512,); "map" is (512, rows, columns)
    batch_size: int = 1  # images that shared the model's batch
    timings_ms: dict[str, float] = field(default_factory=dict)  # decode, queue and model, as far as measured
    image: ImageInfo | None = None  # what the file's header says
    image_stats: ImageStats | None = None  # present when the request asked for it

    @property
    def embedding(self) -> np.ndarray | None:
        """The mean of the last feature map, float32, (512,); None if the request asked for no features."""
        return self.features if self.features is None or self.features.ndim == 1 else self.features.mean((1, 2))


Outcome = ClassifyResult | ServiceError  # of one image


class ModelState(FrozenModel):
    """What one model replica serves."""

    card: ModelCard
    weights: WeightsConfig = Field(default=WeightsConfig(), description="Where a batch job finds the same weights.")
    engine: EngineConfig = Field(default=EngineConfig(), description="How the replica runs them.")
    loading: str | None = Field(default=None, description="Weights that are being loaded to replace these.")
    refused: str | None = Field(default=None, description="Why the last change of settings was refused.")
