"""The JSON that HTTP clients send and receive."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from serve_app.batch.job_records import JobState
from serve_app.messages import ImageInfo
from serve_app.model_card import ModelRef
from serve_app.settings import FrozenModel

MAX_DETAIL_CHARS = 1000  # errors quote names and values that clients send


class Prediction(FrozenModel):
    """One class of the answer."""

    label: str
    score: float = Field(description="Softmax probability, 0-1.")
    class_id: int


class Uncertainty(FrozenModel):
    """How sure the model is, from all its scores."""

    margin: float = Field(description="Best score minus second best, 0-1.")
    entropy: float = Field(description="Entropy of all scores, in nats.")
    abstain: bool = Field(description="The best score is below the threshold: the configuration's, else the weights'.")


class Explanation(FrozenModel):
    """A class activation map; the mean of ``values`` plus the class's bias is exactly its logit."""

    method: Literal["cam"] = "cam"
    class_id: int
    label: str
    grid: tuple[int, int] = Field(description="Rows and columns.")
    values: list[list[float]] = Field(description="One list per grid row, in logits.")
    bias: float = Field(description="The class's bias; mean of values + bias = logit.")
    logit: float = Field(description="The class's score before softmax.")


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_DETAIL_CHARS else text[: MAX_DETAIL_CHARS - 1] + "…"


class Problem(FrozenModel):
    """RFC 9457 problem+json."""

    type: str
    title: str
    status: int
    code: str
    detail: Annotated[str, AfterValidator(_shorten)]
    retryable: bool
    retry_after_s: int | None = None
    request_id: str | None = None


class ErrorMessage(FrozenModel):
    """An error as the Open Inference Protocol and Hugging Face's clients have it."""

    error: str


class TorchServeError(FrozenModel):
    """An error as TorchServe has it."""

    code: int = Field(description="The HTTP status.")
    type: str = Field(description="TorchServe's name of the kind of error.")
    message: str


class LabelScore(FrozenModel):
    """One class of an answer to a client of Hugging Face's servers."""

    label: str
    score: float = Field(description="Softmax probability, 0-1.")


class TorchServeHealth(FrozenModel):
    """The answer of /ping."""

    status: str = Field(description="Healthy, or Unhealthy with the HTTP status 503.")


class TorchServeNames(FrozenModel):
    """A model whose JSON has TorchServe's spelling of names."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class TorchServeModel(TorchServeNames):
    """One model of the list."""

    model_name: str
    model_url: str = Field(description="SHA-256 of the weights.")


class TorchServeModels(FrozenModel):
    """The answer of /models."""

    models: list[TorchServeModel]


class TorchServeWorker(FrozenModel):
    """A replica of the model that takes requests."""

    id: str
    status: str = "READY"


class TorchServeVersion(TorchServeModel):
    """One version of the model."""

    model_version: str
    workers: list[TorchServeWorker]


class SimilarPhoto(FrozenModel):
    """A taught photo that resembles the classified one."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)
    id: str | None = Field(description="Null if another API key owns the head.")
    class_name: str = Field(alias="class")
    distance: float = Field(description="1 - cosine of the embeddings, 0-2.")
    photo: str | None = Field(description="Path of the photo; null if it was not kept.")


class HeadAnswer(FrozenModel):
    """What one head says about an image."""

    version: str = Field(description="Version of the head.")
    predictions: list[Prediction]
    none_of_these: bool = Field(description="The photo is not like the taught ones: distance > max_distance.")
    distance: float = Field(description="From the nearest taught photo: 1 - cosine of the embeddings, 0-2.")
    max_distance: float | None = Field(description="None if too few photos were taught to set it.")
    uncertainty: Uncertainty
    explanation: Explanation | None = None
    similar: list[SimilarPhoto] | None = None


class ImageResult(FrozenModel):
    """The answer for one image of a request: predictions, an embedding or both; or an error."""

    index: int = Field(description="Place in the request, from 0.")
    id: str | None = Field(default=None, description="File name or id that the client gave.")
    status: Literal["ok", "error"]
    image: ImageInfo | None = None
    predictions: list[Prediction] | None = Field(default=None, description="Best first; /v1/embed returns none.")
    uncertainty: Uncertainty | None = None
    timings_ms: dict[str, float] | None = Field(
        default=None, description="fetch (of an image by URL), decode, queue, model."
    )
    batch_size: int | None = Field(default=None, description="Images that shared the model's batch.")
    explanation: Explanation | None = None
    heads: dict[str, HeadAnswer] | None = Field(default=None, description="What each head of the request says.")
    embedding: list[float] | None = Field(default=None, description="512 numbers in the precision of float32.")
    model: ModelRef | None = Field(default=None, description="Which weights answered, where it is not the response's.")
    error: Problem | None = None


class Summary(FrozenModel):
    """How many images of the request were answered."""

    ok: int
    failed: int


class ClassifyResponse(FrozenModel):
    """The body of a 200 from /v1/classify and /v1/embed."""

    id: str
    model: ModelRef | None = Field(default=None, description="None if no image was answered.")
    results: list[ImageResult]
    summary: Summary
    warnings: list[str] | None = Field(default=None, description="Unknown parameters, which were ignored.")


class JobList(FrozenModel):
    """The caller's jobs, the newest first, and what a new one may be."""

    jobs: list[JobState]
    sources: list[str] = Field(description="Folders and prefixes that a job may name.")
    limits: dict[str, int] = Field(description="Of a zip: max_zip_bytes, max_zip_entries, max_unpacked_bytes.")


class Quota(FrozenModel):
    """How much of one kind a caller has used, and may use."""

    used: int = Field(description="Counted against the limit now; without a limit, all since the replica's start.")
    limit: int | None = Field(default=None, description="Most at once; null without a limit.")
    remaining: int | None = Field(default=None, description="What is left of the limit now; null without a limit.")
    total: int | None = Field(default=None, description="All since the start of the replica.")


class Usage(FrozenModel):
    """What a caller has used at one ingress replica, and may use."""

    caller: str | None = Field(description="Name of the API key; null if no key is required.")
    images: Quota = Field(description="Images; the limit refills at `keys.images_per_s`.")
    bytes: Quota = Field(description="Bytes of request bodies; the limit refills at `keys.bytes_per_s`.")
    jobs: Quota | None = Field(default=None, description="Jobs that wait or run; null if jobs are switched off.")
