"""What the HTTP layer needs from whatever classifies: the seam between FastAPI and Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from serve_app.config import AdmissionConfig, EngineConfig, JobsConfig, LimitsConfig, ResponseConfig, WeightsConfig
from serve_app.deadline import Deadline
from serve_app.errors import NotReadyError, ServiceError
from serve_app.http.auth import ApiKeys
from serve_app.messages import Classification, Explain, ImageInfo, ImageStats
from serve_app.model_card import ABSTAIN_BELOW, ModelCard, ModelRef
from serve_app.observability.feedback_store import Feedback


@dataclass(frozen=True)
class Wanted:
    """One image on its way to the other stages.

    Attributes:
        encoded: The file as uploaded.
        top_k: Classes wanted.
        explain: Class to explain, ``"top"`` or none.
        max_pixels: Most that its header may declare.
        deadline: When its client stops waiting.
        look: Measure how it looks, for the prediction log.
    """

    encoded: bytes
    top_k: int
    explain: Explain
    max_pixels: int
    deadline: Deadline
    look: bool = False


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
        look: Brightness, contrast and sharpness of its crop, if they were asked for.
        abstain_below: Best scores under this are not sure, say the weights.
    """

    image: ImageInfo
    classification: Classification
    model: ModelRef
    labels: Mapping[int, str]
    timings_ms: dict[str, float]
    batch_size: int
    look: ImageStats | None = None
    abstain_below: float = ABSTAIN_BELOW


@dataclass(frozen=True)
class Choice:
    """The variant that answers a request.

    Attributes:
        variant: Its name.
        asked: The client named it, so no other may answer in its place.
    """

    variant: str
    asked: bool = False


class Asked(NamedTuple):
    """What is known of an image before it is answered.

    Attributes:
        request_id: Of its request.
        image: Its place in that.
        variant: Who was to answer.
        bytes: Of the file.
        start: When it was sent on its way, as time.perf_counter says it.
    """

    request_id: str
    image: int
    variant: str
    bytes: int
    start: float


class Log(Protocol):
    """Where a row per image goes."""

    def answered(self, asked: Asked, answer: Answer) -> None:
        """An image got its classes."""

    def failed(self, asked: Asked, error: ServiceError) -> None:
        """An image got an error."""

    def snapshot(self) -> dict[str, int]:
        """Rows written, waiting and dropped."""


class Service(Protocol):
    """Stages 2 and 3, however they are reached.

    Attributes:
        limits: What one request may ask for, as it is now.
        tuning: What an answer holds when its request does not say, as it is now.
        admission: How much may be under way, as it is now.
        keys: Who may call, as it is now.
        cors_origins: Sites whose pages may call, as it is now.
        log: The prediction log, if one is kept now.
        feedback: Where votes go, if they are kept now.
        jobs: Whether batch jobs are taken, and how, as it is now.
        room: How many images the stages take at a time; more than those wait.
    """

    limits: LimitsConfig
    tuning: ResponseConfig
    admission: AdmissionConfig
    keys: ApiKeys
    cors_origins: tuple[str, ...]
    log: Log | None
    feedback: Feedback | None
    jobs: JobsConfig | None
    room: int

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

    async def classify(
        self, choice: Choice, encoded: bytes, top_k: int, explain: Explain, deadline: Deadline
    ) -> Answer:
        """Classify one image.

        Args:
            choice: Who is to do it.
            encoded: The file as uploaded.
            top_k: Classes wanted.
            explain: Class to explain, ``"top"`` or none.
            deadline: When its client stops waiting; work that is not begun by then is not done.

        Raises:
            ServiceError: Of the kind that says what went wrong.
        """

    async def recipe(self, variant: str) -> tuple[WeightsConfig, EngineConfig, ModelCard]:
        """What a job needs to answer as a variant does now.

        Raises:
            NotReadyError: It does not answer.
        """

    async def start_jobs(self) -> None:
        """Have batch jobs done that have not ended, if there are any."""

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
