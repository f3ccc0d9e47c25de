"""What the HTTP layer needs from whatever classifies: the seam between FastAPI and Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.config import AnswerTuning, Limits
from serve_app.errors import NotReadyError
from serve_app.schemas import Classification, Explain, ImageInfo, ModelCard, ModelRef


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
        model: The weights that answered.
        labels: Of every class in the classification, by class id.
        timings_ms: ``decode``, ``queue`` and ``model``.
        batch_size: Images in its batch.
    """

    image: ImageInfo
    classification: Classification
    model: ModelRef
    labels: Mapping[int, str]
    timings_ms: dict[str, float]
    batch_size: int


@dataclass(frozen=True)
class Choice:
    """The variant that answers a request.

    Attributes:
        variant: Its name.
        asked: The client named it, so no other may answer in its place.
    """

    variant: str
    asked: bool = False


class Service(Protocol):
    """Stages 2 and 3, however they are reached."""

    limits: Limits
    tuning: AnswerTuning

    def choose(self, asked: str | None = None, client: str | None = None) -> Choice:
        """Choose the variant that answers a request.

        Args:
            asked: The variant that the client named, if it did.
            client: Who asks, if the client wants the same variant each time.

        Raises:
            UnknownModelError: There is no variant of that name.
        """

    def cards(self) -> Mapping[str, ModelCard]:
        """What each variant that has answered so far serves, the one with the largest share first."""

    async def classify(self, choice: Choice, encoded: bytes, top_k: int, explain: Explain) -> Answer:
        """Classify one image.

        Args:
            choice: Who is to do it.
            encoded: The file as uploaded.
            top_k: Classes wanted.
            explain: Class to explain, ``"top"`` or none.

        Raises:
            ServiceError: Of the kind that says what went wrong.
        """

    async def check_ready(self) -> None:
        """Return when a variant that gets requests answers.

        Raises:
            NotReadyError: None does.
        """

    async def describe(self) -> dict[str, Any]:
        """State of what is behind, for /v1/status: ``deployments``, ``variants`` and ``traffic``."""


def first_card(service: Service) -> ModelCard:
    """What the variant with the largest share serves.

    Raises:
        NotReadyError: No variant has answered yet.
    """
    for card in service.cards().values():
        return card
    raise NotReadyError("no model has answered yet; try again")
