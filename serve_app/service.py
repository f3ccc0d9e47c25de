"""What the HTTP layer needs from whatever classifies: the seam between FastAPI and Ray Serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.config import AnswerTuning, DoorTuning, Limits
from serve_app.deadline import Deadline
from serve_app.keys import Keys
from serve_app.schemas import Classification, Explain, ImageInfo, ModelCard


@dataclass(frozen=True)
class Wanted:
    """One image on its way to the other stages.

    Attributes:
        encoded: The file as uploaded.
        top_k: Classes wanted.
        explain: Class to explain, ``"top"`` or none.
        deadline: When its client stops waiting.
    """

    encoded: bytes
    top_k: int
    explain: Explain
    deadline: Deadline


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
    """Stages 2 and 3, however they are reached.

    Attributes:
        card: Of the weights.
        limits: What one request may ask for, as it is now.
        tuning: What an answer holds when its request does not say, as it is now.
        door: How much may be under way, as it is now.
        keys: Who may call, as it is now.
        cors_origins: Sites whose pages may call, as it is now.
        room: How many images the stages take at a time; more than those wait.
    """

    card: ModelCard
    limits: Limits
    tuning: AnswerTuning
    door: DoorTuning
    keys: Keys
    cors_origins: tuple[str, ...]
    room: int

    async def classify(self, encoded: bytes, top_k: int, explain: Explain, deadline: Deadline) -> Answer:
        """Classify one image.

        Args:
            encoded: The file as uploaded.
            top_k: Classes wanted.
            explain: Class to explain, ``"top"`` or none.
            deadline: When its client stops waiting; work that is not begun by then is not done.

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
