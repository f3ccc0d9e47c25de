"""What the files of a head hold, as types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from serve_app.heads.examples import Example
from serve_app.heads.report import Accuracy, HeadReport
from serve_app.heads.taught import TaughtHead
from serve_app.model_card import ModelRef
from serve_app.settings import FrozenModel


class HeadEntry(FrozenModel):
    """The pointer file of a head: which version serves, and what a list of heads shows."""

    name: str
    version: str = Field(description="The version that serves.")
    revision: int = Field(description="Grows with every change, so that an ETag names one state of the head.")
    owner: str | None = Field(description="Name of the API key that made the head; None without keys.")
    public: bool = Field(default=False, description="Whether other keys may read and use the head.")
    created: str = Field(description="ISO 8601, UTC.")
    updated: str = Field(description="ISO 8601, UTC.")
    kind: Literal["classes", "one_class"]
    labels: tuple[str, ...]
    photos: int
    accuracy: Accuracy | None
    backbone: ModelRef

    @property
    def etag(self) -> str:
        """The entity tag of this state, with its quotes (RFC 9110, 8.8.3)."""
        return f'"{self.revision}-{self.version}"'


@dataclass(frozen=True, slots=True, eq=False)
class LoadedHead:
    """One version as it serves."""

    entry: HeadEntry
    head: TaughtHead


@dataclass(frozen=True, slots=True, eq=False)
class StoredHead:
    """One version with all that it was made from."""

    entry: HeadEntry
    head: TaughtHead
    report: HeadReport
    examples: tuple[Example, ...]
