"""What the service returns, as frozen dataclasses with the field names of the API."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from serve_client.errors import ServeError

ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Prediction:
    """One class of the answer; ``score`` is a softmax probability, 0-1."""

    label: str
    score: float
    class_id: int


@dataclass(frozen=True)
class Uncertainty:
    """How sure the model is, from all its scores.

    Attributes:
        margin: Best score minus second best.
        entropy: Entropy of all scores, in nats.
        abstain: The best score is below the service's threshold; None in the results of a job.
    """

    margin: float
    entropy: float
    abstain: bool | None = None


@dataclass(frozen=True)
class ImageInfo:
    """What the header of the image's file says: sizes in px, before the EXIF orientation is applied."""

    format: str
    width: int
    height: int
    orientation: int


@dataclass(frozen=True)
class Explanation:
    """A class activation map: the mean of ``values`` plus ``bias`` is ``logit``.

    Attributes:
        grid: Rows and columns.
        values: One tuple per row, in logits.
    """

    class_id: int
    label: str
    grid: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    bias: float
    logit: float


@dataclass(frozen=True)
class SimilarPhoto:
    """A taught photo that is like the image.

    Attributes:
        id: None if another API key owns the head.
        distance: 1 - cosine of the embeddings, 0-2.
    """

    id: str | None
    class_name: str
    distance: float


@dataclass(frozen=True)
class HeadAnswer:
    """What a head says about an image.

    Attributes:
        version: Version of the head.
        none_of_these: The photo is not like the taught ones: ``distance`` > ``max_distance``.
        distance: From the nearest taught photo: 1 - cosine of the embeddings, 0-2.
        max_distance: None if too few photos were taught to set it.
        similar: The most similar taught photos, if they were asked for.
    """

    version: str
    predictions: tuple[Prediction, ...]
    none_of_these: bool
    distance: float
    uncertainty: Uncertainty
    max_distance: float | None = None
    explanation: Explanation | None = None
    similar: tuple[SimilarPhoto, ...] | None = None


@dataclass(frozen=True)
class ImageResult:
    """The result of one image: predictions, an embedding or both; or an error.

    Attributes:
        index: The image's place among those given, from 0.
        name: File name or address of the image; None for bytes and objects without a name.
        predictions: Best first; empty if there is an error.
        embedding: 512 numbers in the precision of float32; None if they were not asked for.
        heads: What each head that was asked for says, by its name.
        version: Version of the weights that classified it.
        timings_ms: ``decode``, ``queue`` and ``model``.
        batch_size: Images that shared the model's batch.
        error: Why there are no predictions.
        request_id: Id of the request that classified the image, for ``feedback``.
        request_index: The image's place in that request.
    """

    index: int
    name: str | None = None
    predictions: tuple[Prediction, ...] = ()
    uncertainty: Uncertainty | None = None
    image: ImageInfo | None = None
    explanation: Explanation | None = None
    embedding: tuple[float, ...] | None = None
    heads: dict[str, HeadAnswer] = field(default_factory=dict)
    timings_ms: dict[str, float] = field(default_factory=dict)
    batch_size: int | None = None
    version: str | None = None
    request_id: str | None = None
    request_index: int = 0
    error: ServeError | None = None

    @property
    def ok(self) -> bool:
        """Whether the image was classified."""
        return self.error is None

    @property
    def best(self) -> Prediction:
        """The most likely class.

        Raises:
            ServeError: The image's error.
            LookupError: ``min_score`` left out all classes, or the image was only embedded.
        """
        if self.error:
            raise self.error
        if not self.predictions:
            raise LookupError("the result has no classes: `min_score` left out all, or the image was only embedded")
        return self.predictions[0]


@dataclass(frozen=True)
class ModelRef:
    """The weights that a job uses."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class ModelInfo:
    """One variant of the model that the service has."""

    variant: str
    name: str
    version: str
    sha256: str
    classes: int
    notes: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """Limits of one request: sizes in bytes, ``max_pixels`` of one image, the deadline in seconds."""

    max_image_bytes: int
    max_images: int
    max_body_bytes: int
    max_pixels: int
    deadline_s: float


@dataclass(frozen=True)
class Models:
    """What the service serves.

    Attributes:
        feedback: Feedback's settings; None if feedback is switched off.
    """

    models: tuple[ModelInfo, ...]
    limits: Limits
    formats: tuple[str, ...]
    feedback: dict[str, Any] | None = None


@dataclass(frozen=True)
class Quota:
    """How much of one kind the caller has used, and may use; ``limit`` None means unlimited."""

    used: int
    limit: int | None = None
    remaining: int | None = None
    total: int | None = None


@dataclass(frozen=True)
class Usage:
    """What the caller has used at one ingress replica, and may use; ``caller`` None means that no key is needed."""

    images: Quota
    bytes: Quota
    caller: str | None = None
    jobs: Quota | None = None


@dataclass(frozen=True)
class JobProgress:
    """Images of a job so far; ``done`` includes ``failed``, and ``total`` is None until they are listed."""

    total: int | None = None
    done: int = 0
    failed: int = 0


@dataclass(frozen=True)
class JobState:
    """State of a batch job.

    Attributes:
        status: ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        source: The folder or prefix that the job reads, or the file name of its zip.
        top_k: Classes per image.
        embed: Whether the results have embeddings.
        head: Name and version of the head whose classes the results have.
        eta_s: Seconds until the job ends; None while unknown.
        error: Why the job failed.
    """

    id: str
    status: str
    created: datetime
    source: str
    top_k: int
    model: ModelRef
    progress: JobProgress
    embed: bool = False
    head: dict[str, str] | None = None
    eta_s: float | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the job has succeeded, failed or been cancelled."""
        return self.status in ENDED


@dataclass(frozen=True)
class JobList:
    """The caller's jobs, the newest first, the prefixes that a job may name, and the limits of a zip."""

    jobs: tuple[JobState, ...]
    sources: tuple[str, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class JobRowError:
    """Why an image of a job has no classes."""

    code: str
    detail: str | None = None


@dataclass(frozen=True)
class JobRow:
    """The result of one image of a job; ``path`` is its path below the source, ``embedding`` that of ``embed``."""

    path: str
    predictions: tuple[Prediction, ...] = ()
    uncertainty: Uncertainty | None = None
    embedding: tuple[float, ...] | None = None
    version: str | None = None
    error: JobRowError | None = None

    @property
    def ok(self) -> bool:
        """Whether the image was classified."""
        return self.error is None
