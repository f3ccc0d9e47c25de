"""What a set of weights says about itself: labels, input transform, calibration and accuracy.

A model card is the JSON file beside a safetensors file. Everything that belongs to the weights stands here, so no
setting can contradict them.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, FiniteFloat, model_validator

from serve_app.settings import FrozenModel, Sha256

DEFAULT_ABSTAIN_BELOW = 0.4  # used when neither the settings nor the card set a threshold


class ImageTransform(FrozenModel):
    """How an image becomes the model's input. It belongs to the weights, so it is not a setting."""

    resize_px: int = Field(gt=0, le=4096, description="Length of the short side after resizing.")
    crop_px: int = Field(gt=0, le=4096, description="Side of the center crop that the model sees.")
    mean: tuple[float, float, float] = Field(description="Per-channel mean (RGB, 0-1) to subtract.")
    std: tuple[float, float, float] = Field(description="Per-channel deviation (RGB, 0-1) to divide by.")

    @model_validator(mode="after")
    def _crop_fits(self) -> ImageTransform:
        if self.crop_px > self.resize_px:
            raise ValueError(f"crop_px ({self.crop_px}) is larger than resize_px ({self.resize_px})")
        return self


class Int8Cost(FrozenModel):
    """How int8 results differ from float32, measured on images that were not used for calibration."""

    images: int = Field(gt=0, description="Number of held-out images.")
    agreement: float = Field(ge=0, le=1, description="Share of images whose best class is the same as in float32.")
    mean_score_difference: float = Field(description="Mean over images of the largest change of a score.")
    largest_score_difference: float = Field(description="Largest change of a score in any image.")
    top1: float | None = Field(default=None, description="Top-1 accuracy in int8, if the true classes are known.")
    top1_fp32: float | None = Field(default=None, description="Top-1 accuracy in float32.")


class Int8Calibration(FrozenModel):
    """Range of each activation, from which int8 takes its quantization steps."""

    method: str = Field(description="How the ranges were chosen, such as a percentile.")
    images: int = Field(gt=0, description="Number of calibration images.")
    fingerprint: Sha256 = Field(description="SHA-256 over the names and contents of these images.")
    cost: Int8Cost | None = Field(default=None, description="None until it has been measured.")
    ranges: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(
        description="Lowest and highest value of each activation in the ONNX graph."
    )

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Int8Calibration:
        if wrong := [name for name, (lowest, highest) in self.ranges.items() if lowest > highest]:
            raise ValueError(f"ranges end below their start: {', '.join(wrong)}")
        return self


class Calibration(FrozenModel):
    """Temperature and threshold, fitted on images that were not used for training."""

    temperature: float = Field(gt=0, allow_inf_nan=False, description="Logits are divided by it before softmax.")
    abstain_below: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Best scores under this threshold count as not sure; None if no threshold reaches `precision`.",
    )
    precision: float | None = Field(
        default=None, gt=0, lt=1, description="Target share of correct results among the sure ones, if that set it."
    )
    images: int = Field(gt=0, description="Number of images in the fit.")
    fingerprint: Sha256 = Field(description="SHA-256 over the contents and labels of these images.")
    ece: float = Field(description="Expected calibration error on these images with this temperature.")
    ece_before: float = Field(description="Expected calibration error on these images with temperature 1.")
    right_kept: float | None = Field(default=None, description="Share of the right answers that are sure.")
    unknown_images: int | None = Field(default=None, description="Number of images of no class that were measured.")
    unknown_abstained: float | None = Field(default=None, description="Share of them that are not sure.")


class ModelRef(FrozenModel):
    """Names one set of weights."""

    name: str
    version: str
    sha256: str


class ModelCard(FrozenModel):
    """Content of ``<weights>.json``, the file beside the safetensors file."""

    name: str = Field(description="Name of the model in URLs.")
    version: str = Field(description="Version of the weights; sent as X-Model-Version.")
    labels: tuple[str, ...] = Field(min_length=2, description="Class names in the order of the class ids.")
    transform: ImageTransform
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$|^[0-9a-f]{8}$",
        description="SHA-256 of the weights file in hex; 8 digits for torchvision's own file.",
    )
    training: dict[str, Any] = Field(default_factory=dict, description="Data, command, seed, time.")
    metrics: dict[str, Any] = Field(default_factory=dict, description="Accuracy, and the data it was measured on.")
    notes: str = Field(default="", description="What the model is for and where it fails.")
    descriptions: dict[str, str] = Field(default_factory=dict, description="One line about each class, by label.")
    left_out: dict[str, str] = Field(
        default_factory=dict, description="Classes that its data has and the model does not know, with the reason."
    )
    licenses: dict[str, str] = Field(default_factory=dict, description="Terms of data and initial weights, by name.")
    calibration: Calibration | None = Field(default=None, description="Written by `serve-app calibrate`.")
    int8: Int8Calibration | None = Field(default=None, description="Written by `serve-app quantize`.")

    @model_validator(mode="after")
    def _descriptions_are_of_labels(self) -> ModelCard:
        if unknown := sorted({*self.descriptions} - {*self.labels}):
            raise ValueError(f"descriptions of classes that the model does not have: {', '.join(unknown)}")
        return self

    @property
    def temperature(self) -> float:
        """Divisor of the logits before softmax; 1 without calibration."""
        return self.calibration.temperature if self.calibration else 1.0

    @property
    def abstain_below(self) -> float:
        """Threshold of the best score; the setting ``abstain_below`` overrides it."""
        threshold = self.calibration.abstain_below if self.calibration else None
        return DEFAULT_ABSTAIN_BELOW if threshold is None else threshold

    @property
    def ref(self) -> ModelRef:
        """What results say about the weights."""
        return ModelRef(name=self.name, version=self.version, sha256=self.sha256)
