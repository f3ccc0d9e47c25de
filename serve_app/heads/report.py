"""What a fit says about itself. All shares are fractions of 1.

Every accuracy counts photos whose class was predicted by a model that saw neither the photo nor a near duplicate of it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from serve_app.settings import FrozenModel


class Accuracy(FrozenModel):
    """A share of right answers with its 95 % interval for photos that were not taught."""

    photos: int = Field(description="Number of photos that the share counts.")
    correct: int = Field(description="Number of them whose class was predicted.")
    accuracy: float = Field(description="correct / photos.")
    low: float = Field(description="Lower end of the 95 % interval.")
    high: float = Field(description="Upper end of the 95 % interval.")


class ClassReport(FrozenModel):
    """How well one class is told apart."""

    name: str
    photos: int = Field(description="Number of taught photos.")
    accuracy: Accuracy | None = Field(description="None if the class has too few photos to measure it.")
    note: str | None = Field(default=None, description="What to know about this class, in a sentence.")


class LabelError(FrozenModel):
    """An example that probably has the wrong class."""

    example_id: str
    class_name: str = Field(description="The class that it has.")
    suggested: str = Field(description="The class that fits better.")
    score: float = Field(description="Score of the suggested class, by a model that did not see the photo.")


class NearDuplicate(FrozenModel):
    """Two nearly equal photos that have different classes."""

    example_ids: tuple[str, str]
    class_names: tuple[str, str]
    similarity: float = Field(description="Cosine of their embeddings; 1 is the same photo.")


class ConfusedPair(FrozenModel):
    """Two classes of which one was taken for the other."""

    class_names: tuple[str, str]
    photos: int = Field(description="Photos of one of them that got the other.")


class PhotosToAdd(FrozenModel):
    """A kind of photo that would help most."""

    class_name: str
    advice: str = Field(description="Which photos to add and why, in a sentence.")
    like: tuple[str, ...] = Field(default=(), description="Ids of taught photos of this kind.")


class HeadCalibration(FrozenModel):
    """How the scores became probabilities."""

    temperature: float = Field(description="Logits were divided by it; fitted on out-of-fold logits.")
    ece: float = Field(description="Expected calibration error of the out-of-fold scores with it.")
    ece_before: float = Field(description="Expected calibration error without it.")


class UnknownThreshold(FrozenModel):
    """When a photo counts as none of the taught classes."""

    max_distance: float = Field(description="Photos that are farther from the taught photos are none of the classes.")
    kept: float = Field(description="Share of the taught photos within it, each measured against the others.")


class HeadReport(FrozenModel):
    """What a fit found out; ``notes`` says in sentences what a number cannot say."""

    kind: Literal["classes", "one_class"] = Field(description="one_class: only tells photos of the class from others.")
    photos: int
    accuracy: Accuracy | None = Field(description="Over all classes; None where it cannot be measured.")
    classes: tuple[ClassReport, ...]
    confusion: tuple[tuple[int, ...], ...] = Field(
        default=(), description="A row per true class, a column per predicted class, in the order of `classes`."
    )
    most_confused: ConfusedPair | None = None
    label_errors: tuple[LabelError, ...] = Field(default=(), description="The most probable ones first.")
    near_duplicates: tuple[NearDuplicate, ...] = Field(default=(), description="Pairs across classes only.")
    photos_to_add: tuple[PhotosToAdd, ...] = Field(default=(), description="At most three, the most useful first.")
    calibration: HeadCalibration | None = None
    unknown: UnknownThreshold | None = Field(default=None, description="None if too few photos set a threshold.")
    strength: float | None = Field(default=None, description="Chosen inverse L2 strength C of scikit-learn.")
    notes: tuple[str, ...] = ()
    fit_s: float = Field(default=0, description="Seconds that the fit took.")
