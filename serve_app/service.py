"""What the HTTP layer needs from whatever classifies: the seam between FastAPI and Ray Serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.config import AnswerTuning, Limits
from serve_app.schemas import Classification, Explain, ImageInfo, ModelCard


@dataclass(frozen=True)
class Wanted:
    """One image on its way to the other stages.

    Attributes:
        encoded: The file as uploaded.
        top_k: Classes wanted.
        explain: Class to explain, ``"top"`` or none.
    """

    encoded: bytes
    top_k: int
    explain: Explain


@dataclass(frozen=True)
class Answer:
    """One image, classified.

    Attributes:
        image: What its header said.
        classification: Classes, scores and the like.
        timings_ms: ``decode``, ``queue`` and ``model``.
        batch_size: Images in its batch.
    """

    image: ImageInfo
    classification: Classification
    timings_ms: dict[str, float]
    batch_size: int


class Service(Protocol):
    """Stages 2 and 3, however they are reached."""

    card: ModelCard
    limits: Limits
    tuning: AnswerTuning

    async def classify(self, encoded: bytes, top_k: int, explain: Explain) -> Answer:
        """Classify one image.

        Args:
            encoded: The file as uploaded.
            top_k: Classes wanted.
            explain: Class to explain, ``"top"`` or none.

        Raises:
            ServiceError: Of the kind that says what went wrong.
        """

    async def check_ready(self) -> None:
        """Return when every stage answers.

        Raises:
            NotReadyError: One does not.
        """

    async def describe(self) -> dict[str, Any]:
        """State of the stages behind: replicas by deployment, where that is known."""
