"""What declarations of settings are made of: units, bounds, and base classes of the models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

MiB = 1024 * 1024


@dataclass(frozen=True)
class Unit:
    """The unit of a setting, for the tables in docs/configuration.md."""

    name: str


Bytes = Annotated[int, Field(gt=0), Unit("bytes")]
Seconds = Annotated[float, Field(gt=0), Unit("seconds")]
Images = Annotated[int, Field(ge=1), Unit("images")]
Rows = Annotated[int, Field(ge=1), Unit("rows")]
Days = Annotated[int, Unit("days")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FrozenModel(BaseModel):
    """An immutable model that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(FrozenModel):
    """Settings of which some had another name in version 0.1, or are gone."""

    renamed: ClassVar[Mapping[str, str]] = {}  # old key -> current key; an old key is an error that names the new one
    removed: ClassVar[Mapping[str, str]] = {}  # old key -> what to do instead; an old key is an error that says so

    @model_validator(mode="before")
    @classmethod
    def _reject_old_keys(cls, values: object) -> object:
        messages = {key: f"`{key}` was renamed to `{new}`" for key, new in cls.renamed.items()}
        messages |= {key: f"`{key}` was removed: {instead}" for key, instead in cls.removed.items()}
        if isinstance(values, Mapping) and (old := [key for key in values if key in messages]):
            raise ValueError("; ".join(messages[key] for key in old))
        return values
