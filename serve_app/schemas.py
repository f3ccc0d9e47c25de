"""What crosses a boundary: the card beside the weights, items between stages, answers on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from serve_app.config import EngineSpec, WeightsSpec

ABSTAIN_BELOW = 0.4  # where neither the configuration nor the weights' card has a threshold


class Schema(BaseModel):
    """Immutable, and closed: an unknown or misspelled field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageTransform(Schema):
    """How an image becomes the model's input; part of the weights, never of the configuration."""

    resize_px: int = Field(gt=0, le=4096, description="Length of the short side after resizing.")
    crop_px: int = Field(gt=0, le=4096, description="Side of the centre crop that the model sees.")
    mean: tuple[float, float, float] = Field(description="Per-channel mean (RGB, 0-1) to subtract.")
    std: tuple[float, float, float] = Field(description="Per-channel deviation (RGB, 0-1) to divide by.")

    @model_validator(mode="after")
    def _crop_fits(self) -> ImageTransform:
        if self.crop_px > self.resize_px:
            raise ValueError(f"crop_px ({self.crop_px}) is larger than resize_px ({self.resize_px})")
        return self


class Int8Cost(Schema):
    """What int8 changes, measured on images that calibrated nothing."""

    images: int = Field(gt=0, description="Held-out images that it was measured on.")
    agreement: float = Field(ge=0, le=1, description="Share of them whose best class is float32's.")
    mean_score_difference: float = Field(description="Mean over images of their largest change of a class's score.")
    largest_score_difference: float = Field(description="Largest change of any class's score.")
    top1: float | None = Field(default=None, description="Share that int8 has right, if the classes are known.")
    top1_fp32: float | None = Field(default=None, description="Share that float32 has right.")


class Int8Calibration(Schema):
    """How far each activation goes, so that int8 knows its steps."""

    method: str = Field(description="How the ranges were chosen.")
    images: int = Field(gt=0, description="Images that it was made from.")
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 over their names and contents.")
    cost: Int8Cost | None = Field(default=None, description="None until it is measured.")
    ranges: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(
        description="Lowest and highest value of each activation in the graph that backbones.graph writes."
    )

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Int8Calibration:
        if wrong := [name for name, (lowest, highest) in self.ranges.items() if lowest > highest]:
            raise ValueError(f"ranges end below their start: {', '.join(wrong)}")
        return self


class Calibration(Schema):
    """What makes scores honest, fitted on images that trained nothing."""

    temperature: float = Field(gt=0, allow_inf_nan=False, description="Logits are divided by it before softmax.")
    abstain_below: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Best scores under this are not sure; None where no threshold reaches `precision`.",
    )
    precision: float = Field(gt=0, lt=1, description="Share of the sure answers that are to be right.")
    images: int = Field(gt=0, description="Images that it was fitted on.")
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 over their contents and labels.")
    ece: float = Field(description="Expected calibration error on those images, after.")
    ece_before: float = Field(description="The same with temperature 1.")


class ModelCard(Schema):
    """Everything a model carries besides its numbers; ``<weights>.json`` beside the safetensors file."""

    name: str = Field(description="The model's name in URLs.")
    version: str = Field(description="Names these weights; sent as X-Model-Version.")
    labels: tuple[str, ...] = Field(min_length=2, description="Class names in the order of the class ids.")
    transform: ImageTransform
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$|^[0-9a-f]{8}$", description="Of the weights file, in hex.")
    training: dict[str, Any] = Field(default_factory=dict, description="Data, command, seed, time.")
    metrics: dict[str, Any] = Field(default_factory=dict, description="What was measured, on what.")
    notes: str = Field(default="", description="What the model is for and where it fails.")
    calibration: Calibration | None = Field(
        default=None, description="Written by `python -m serve_app.training.calibrate`."
    )
    int8: Int8Calibration | None = Field(default=None, description="Written by `python -m serve_app.quantize`.")

    @property
    def temperature(self) -> float:
        """What logits are divided by before softmax."""
        return self.calibration.temperature if self.calibration else 1.0

    @property
    def abstain_below(self) -> float:
        """Best scores under this are not sure, unless the configuration says otherwise."""
        found = self.calibration.abstain_below if self.calibration else None
        return ABSTAIN_BELOW if found is None else found

    @property
    def ref(self) -> ModelRef:
        """What answers say of it."""
        return ModelRef(name=self.name, version=self.version, sha256=self.sha256)


class ImageInfo(Schema):
    """What the header of one upload says."""

    format: str = Field(description="jpeg, png, webp, gif, bmp or tiff: found by content.")
    width: int = Field(description="Stored width in px, before orientation.")
    height: int = Field(description="Stored height in px, before orientation.")
    orientation: int = Field(description="EXIF orientation, 1-8; already honoured.")


@dataclass(frozen=True)
class PreprocessedImage:
    """What leaves the preprocess stage.

    Attributes:
        pixels: uint8, (crop_px, crop_px, 3), RGB, values 0-255, upright.
        info: What the file's header said.
    """

    pixels: np.ndarray
    info: ImageInfo


class Look(NamedTuple):
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


class ModelRef(Schema):
    """Which weights answered."""

    name: str
    version: str
    sha256: str


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


class ModelState(Schema):
    """What one replica of a model serves."""

    card: ModelCard
    weights: WeightsSpec = Field(default=WeightsSpec(), description="Where others can have the same weights from.")
    engine: EngineSpec = Field(default=EngineSpec(), description="How they are run.")
    loading: str | None = Field(default=None, description="Weights that are being loaded to take over.")
    refused: str | None = Field(default=None, description="Why the last change was not made.")


class JobProgress(Schema):
    """How far a job is."""

    total: int | None = Field(default=None, description="Images; null until they are listed.")
    done: int = Field(default=0, description="Images with a row, failed ones included.")
    failed: int = 0


class JobState(Schema):
    """A batch job as it is now."""

    id: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created: datetime
    source: str = Field(description="The prefix, or the zip's name.")
    top_k: int
    model: ModelRef
    progress: JobProgress
    eta_s: float | None = Field(default=None, description="Seconds until it ends; null while that is not known.")
    error: str | None = Field(default=None, description="Why it failed.")


class JobList(Schema):
    """The caller's jobs, the newest first, and what a new one may be."""

    jobs: list[JobState]
    sources: list[str] = Field(description="Folders and prefixes that a job may name.")
    limits: dict[str, int] = Field(description="Of a zip: max_zip_bytes, max_zip_entries, max_unpacked_bytes.")


class Prediction(Schema):
    """One class of the answer."""

    label: str
    score: float = Field(description="Softmax probability, 0-1.")
    class_id: int


class Uncertainty(Schema):
    """How sure the model is, from all its scores."""

    margin: float = Field(description="Best score minus second best, 0-1.")
    entropy: float = Field(description="Entropy of all scores, in nats.")
    abstain: bool = Field(description="The best score is below the threshold: the configuration's, else the weights'.")


class Explanation(Schema):
    """A class activation map; the mean of ``values`` plus the class's bias is exactly its logit."""

    method: Literal["cam"] = "cam"
    class_id: int
    label: str
    grid: tuple[int, int] = Field(description="Rows and columns.")
    values: list[list[float]] = Field(description="One list per grid row, in logits.")
    bias: float = Field(description="The class's bias; mean of values + bias = logit.")
    logit: float = Field(description="The class's score before softmax.")


class Problem(Schema):
    """RFC 9457 problem+json."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    retryable: bool
    retry_after_s: int | None = None
    request_id: str | None = None


class ImageResult(Schema):
    """The answer for one image of a request: predictions or an error, never both."""

    index: int = Field(description="Place in the request, from 0.")
    id: str | None = Field(default=None, description="File name or id that the client gave.")
    status: Literal["ok", "error"]
    image: ImageInfo | None = None
    predictions: list[Prediction] | None = None
    uncertainty: Uncertainty | None = None
    timings_ms: dict[str, float] | None = Field(default=None, description="decode, queue, model.")
    batch_size: int | None = Field(default=None, description="Images that shared the model's batch.")
    explanation: Explanation | None = None
    model: ModelRef | None = Field(default=None, description="Which weights answered, where it is not the response's.")
    error: Problem | None = None


class Summary(Schema):
    """How many images of the request were answered."""

    ok: int
    failed: int


class ClassifyResponse(Schema):
    """The body of a 200 from /v1/classify."""

    id: str
    model: ModelRef | None = Field(default=None, description="None if no image was answered.")
    results: list[ImageResult]
    summary: Summary
