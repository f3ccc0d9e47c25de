"""Read a recipe file: which classes a map's photos become, and how a head is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from serve_app.errors import DatasetError
from serve_app.settings import FrozenModel
from serve_app.training.augment import Augmentation


class HeadConfig(FrozenModel):
    """Training of the linear head on standardized features of the frozen backbone."""

    epochs: int = Field(12, gt=0, description="Passes over all views of all photos.")
    batch: int = Field(256, gt=0, description="Views per step.")
    peak_lr: float = Field(3e-3, gt=0, description="Highest learning rate of AdamW's one cycle.")
    weight_decay: float = Field(0.1, ge=0, description="Of AdamW.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Share of the features that a step ignores.")


class SmallPhotosConfig(FrozenModel):
    """Sources whose photos were enlarged; without care their classes would be those of blurred photos."""

    sources: tuple[str, ...] = Field((), description="All photos of these sources are small.")
    px: int = Field(64, gt=0, description="About their side; every photo gets one more view with this little detail.")


class JudgeConfig(FrozenModel):
    """Which photos judge the recipe: those of sources that were left out of a training."""

    leave_out: tuple[tuple[str, ...], ...] = Field(
        (), description="Groups of sources; each group is left out of one training and judged by it."
    )
    keep_right: float = Field(0.92, gt=0, lt=1, description="Share of right answers that the threshold keeps.")


class TransferRecipe(FrozenModel):
    """A recipe file. Paths in it are relative to the file."""

    version: str = Field(description="Version of the weights.")
    class_map: Path = Field(description="CSV with the columns archive, folder, source and class.")
    px: int = Field(224, ge=32, le=1024, description="Side of the photos that the model gets; small ones are enlarged.")
    views: int = Field(3, ge=1, description="Views of each photo: its center square, and augmented ones.")
    augmentation: dict[str, Any] = Field(default_factory=dict, description="Overrides of Augmentation, by field.")
    head: HeadConfig = HeadConfig()
    small_photos: SmallPhotosConfig = SmallPhotosConfig()
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Probability spread over all classes.")
    class_weight_power: float = Field(
        -0.5, le=0, description="A class of n photos weighs n to this power in the loss; 0 weighs photos equally."
    )
    unknown_weight: float = Field(
        0.0, ge=0, description="Weight of a photo of no class, which should get equal scores; 0 leaves them out."
    )
    source_prior: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of log P(class | source) that training adds to the logits, so that the head need not learn "
        "which classes a source has.",
    )
    unknown_per_folder: int = Field(30, ge=0, description="Photos of no class to use from each of their folders.")
    judge: JudgeConfig = JudgeConfig()
    classes: dict[str, str] = Field(min_length=2, description="Description of each class; the map may have more.")
    left_out: dict[str, str] = Field(default_factory=dict, description="Classes of the map left out, with the reason.")
    licenses: dict[str, str] = Field(default_factory=dict, description="Terms of data and initial weights.")
    notes: str = Field("", description="What the model is for and where it fails, for the card.")

    @model_validator(mode="after")
    def _augmentation_is_known(self) -> TransferRecipe:
        self.augment_options()
        return self

    def augment_options(self) -> Augmentation:
        """Return the ranges of the augmented views."""
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.augmentation.items()}
            return Augmentation(**values)
        except TypeError as error:
            raise ValueError(f"augmentation: {error}") from None


def load_recipe(path: Path) -> TransferRecipe:
    """Read a recipe file; its class map becomes a path that exists.

    Raises:
        DatasetError: The file is missing or not a valid recipe; the message names the field.
    """
    try:
        recipe = TransferRecipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DatasetError(f"{path}: cannot read the recipe: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise DatasetError(f"{path}: {field}: {first['msg']}") from None
    class_map = path.parent / recipe.class_map
    if not class_map.is_file():
        raise DatasetError(f"{path}: class_map: no such file: {class_map}")
    return recipe.model_copy(update={"class_map": class_map})
