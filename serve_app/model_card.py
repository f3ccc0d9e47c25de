"""What a set of weights says about itself: labels, input transform, calibration and accuracy.

A model card is the JSON file beside a safetensors file. Everything that belongs to the weights stands here, so no
setting can contradict them.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, FiniteFloat, model_validator

from serve_app.config import FrozenModel

ABSTAIN_BELOW = 0.4  # where neither the configuration nor the weights' card has a threshold


class ImageTransform(FrozenModel):
    """How an image becomes the model's input; part of the weights, never of the configuration."""

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
    """What int8 changes, measured on images that calibrated nothing."""

    images: int = Field(gt=0, description="Held-out images that it was measured on.")
    agreement: float = Field(ge=0, le=1, description="Share of them whose best class is float32's.")
    mean_score_difference: float = Field(description="Mean over images of their largest change of a class's score.")
    largest_score_difference: float = Field(description="Largest change of any class's score.")
    top1: float | None = Field(default=None, description="Share that int8 has right, if the classes are known.")
    top1_fp32: float | None = Field(default=None, description="Share that float32 has right.")


class Int8Calibration(FrozenModel):
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


class Calibration(FrozenModel):
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


class ModelRef(FrozenModel):
    """Which weights answered."""

    name: str
    version: str
    sha256: str


class ModelCard(FrozenModel):
    """Everything a model carries besides its numbers; ``<weights>.json`` beside the safetensors file."""

    name: str = Field(description="The model's name in URLs.")
    version: str = Field(description="Names these weights; sent as X-Model-Version.")
    labels: tuple[str, ...] = Field(min_length=2, description="Class names in the order of the class ids.")
    transform: ImageTransform
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$|^[0-9a-f]{8}$", description="Of the weights file, in hex.")
    training: dict[str, Any] = Field(default_factory=dict, description="Data, command, seed, time.")
    metrics: dict[str, Any] = Field(default_factory=dict, description="What was measured, on what.")
    notes: str = Field(default="", description="What the model is for and where it fails.")
    calibration: Calibration | None = Field(default=None, description="Written by `serve-app calibrate`.")
    int8: Int8Calibration | None = Field(default=None, description="Written by `serve-app quantize`.")

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
