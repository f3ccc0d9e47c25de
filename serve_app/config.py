"""Every knob that is not fixed by the weights, with its unit, default and one sentence.

``AppConfig`` is ``args:`` in a Serve config file: a change restarts the application.
``ClassifierConfig`` and ``IngressConfig`` are ``user_config:`` of a deployment: a change is live
within seconds. Capacity (replicas, CPUs, GPUs, queues) is Serve's own ``deployments:``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MiB = 1024 * 1024
Model = TypeVar("Model", bound=BaseModel)


class FrozenModel(BaseModel):
    """Immutable, and closed: an unknown or misspelled knob is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(FrozenModel):
    """Settings whose old names give an error that says the new name.

    Attributes:
        renamed: Key of version 0.1 -> key of today.
    """

    renamed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _name_renamed_keys(cls, values: object) -> object:
        if isinstance(values, Mapping) and (old := [key for key in values if key in cls.renamed]):
            raise ValueError("; ".join(f"`{key}` is called `{cls.renamed[key]}` now" for key in old))
        return values


class WeightsConfig(FrozenModel):
    """Which weights to serve; a plain string is short for ``source`` alone."""

    source: str = Field(
        "demo",
        description="`imagenet`, `demo`, or the path or URI of a .safetensors file with its card (.json) beside it.",
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="Hash of the file, in hex; required for a path or URI.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value


class EngineConfig(FrozenModel):
    """How the model is run; a plain string is short for ``runtime`` alone."""

    runtime: Literal["auto", "cuda", "torch", "onnxruntime", "winograd", "mnn"] = Field(
        "auto", description="What runs the model; `auto` takes the GPU, else what is fastest on this CPU."
    )
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = Field(
        "auto", description="Of the arithmetic; `auto` is fp16 on a GPU and fp32 on a CPU."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"runtime": value} if isinstance(value, str) else value


class LimitsConfig(FrozenModel):
    """What one request may ask for."""

    max_image_bytes: int = Field(20 * MiB, gt=0, description="Largest encoded image, in bytes.")
    max_images: int = Field(64, gt=0, description="Most images in one request.")
    max_body_bytes: int = Field(64 * MiB, gt=0, description="Largest request body, in bytes.")
    max_pixels: int = Field(
        50_000_000,
        gt=0,
        le=178_000_000,  # above, Pillow refuses by itself
        description="Most pixels an image's header may declare.",
    )
    deadline_s: float = Field(30.0, gt=0, description="Longest time that a request may take, in seconds.")


class AdmissionConfig(Settings):
    """How much one ingress replica lets in; what is over it is refused with 503 and Retry-After."""

    renamed = {
        "max_queue_s": "max_queue_wait_s",
        "max_under_way": "max_inflight_images",
        "max_held_bytes": "max_buffered_bytes",
    }
    max_queue_wait_s: float = Field(
        1.0, gt=0, description="Longest time that a new image may be expected to wait for the stages, in seconds."
    )
    max_inflight_images: int = Field(1024, gt=0, description="Most images under way, whatever their wait.")
    max_buffered_bytes: int = Field(512 * MiB, gt=0, description="Most bytes of request bodies in memory.")


class KeysConfig(FrozenModel):
    """Who may call; while none of the three sources is named, everyone may."""

    hashes: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] | None = Field(
        None, description="Name of each caller to the sha256 of the API key."
    )
    file: str | None = Field(
        None, description="File with a line `name sha256` per key; a change is seen within a second."
    )
    env: str | None = Field(None, description="Environment variable that holds such lines.")
    images_per_s: float | None = Field(
        None, gt=0, description="Images per second that each key may send to one ingress replica; none is no limit."
    )
    burst: int = Field(100, ge=1, description="Images that it may send at once, over that rate.")

    @property
    def required(self) -> bool:
        """Whether callers need a key."""
        return any(source is not None for source in (self.hashes, self.file, self.env))


class PredictionLogConfig(Settings):
    """The prediction log: one row per image answered."""

    renamed = {
        "max_waiting": "max_buffered_rows",
    }
    folder: str = Field(..., description="Folder or bucket (`s3://…`) that takes the rows, as Parquet.")
    flush_s: float = Field(
        10.0, gt=0, le=3600, description="Longest time that a row waits to be written; a killed process loses so much."
    )
    rows_per_file: int = Field(20_000, ge=1, description="So many rows are written at once, however soon.")
    max_buffered_rows: int = Field(100_000, ge=1, description="Rows held until they are written; more are dropped.")


class FeedbackConfig(FrozenModel):
    """What people say about answers."""

    folder: str = Field(..., description="Folder that takes the votes; all ingress replicas have to reach it.")
    keep_images: bool = Field(
        False, description="Whether the images that people send with the right class are kept, to train on."
    )


class JobsConfig(Settings):
    """Batch jobs over HTTP."""

    renamed = {
        "max_waiting": "max_queued_jobs",
        "models": "workers",
    }
    folder: str = Field(
        ...,
        description="Folder that keeps uploads and results, seen by all nodes; a relative one is beside the program.",
    )
    sources: tuple[str, ...] = Field(
        (), description="Folders and bucket prefixes (`s3://…`) that a job may read; without any it has to bring a zip."
    )
    max_zip_bytes: int = Field(500 * MiB, gt=0, description="Largest zip, in bytes.")
    max_zip_entries: int = Field(100_000, gt=0, description="Most files and folders in it.")
    max_unpacked_bytes: int = Field(4096 * MiB, gt=0, description="Most bytes of all its files together.")
    max_queued_jobs: int = Field(20, ge=1, description="Most jobs that have not ended; one runs at a time.")
    workers: int | None = Field(
        None, ge=1, description="Workers of a job, each with a CPU and a model; by default one for each CPU."
    )
    keep_days: float = Field(7.0, gt=0, description="Days after which a job that has ended is forgotten.")


class AppConfig(FrozenModel):
    """``args:`` of an application with a model in it."""

    weights: WeightsConfig = WeightsConfig()
    engine: EngineConfig = EngineConfig()


class BatchConfig(Settings):
    """How batches form."""

    renamed = {
        "max_batch": "max_batch_size",
        "max_wait_ms": "max_batch_wait_ms",
    }
    max_batch_size: int = Field(16, ge=1, le=1024, description="Most images in one batch.")
    max_batch_wait_ms: float = Field(
        20.0,
        ge=0,
        le=1000,
        description="Longest time that an image waits for others known to be on their way, in ms.",
    )


class ClassifierConfig(BatchConfig):
    """``user_config:`` of the Classifier."""

    weights: WeightsConfig | None = Field(
        None,
        description="Weights to serve instead of those in `args:`; they load while the old ones serve.",
    )


class ResponseConfig(Settings):
    """What an answer holds when its request does not say."""

    top_k: int = Field(10, ge=1, le=1000, description="Classes per image when a request names no `top_k`.")
    abstain_below: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Best scores under this are flagged as `abstain` (not sure); "
        "by default what the weights' card says, else 0.4.",
    )


class IngressConfig(ResponseConfig):
    """``user_config:`` of the Ingress."""

    renamed = {
        "lanes": "max_inflight_groups",
        "max_group": "max_group_size",
        "shadow_share": "shadow_fraction",
        "door": "admission",
        "log": "prediction_log",
    }
    max_inflight_groups: int = Field(
        4,
        ge=1,
        le=1024,
        description="Groups of images that one ingress replica has under way at a time; images that come "
        "while all max_inflight_groups are taken leave together.",
    )
    max_group_size: int = Field(8, ge=1, le=64, description="Most images in one group.")
    traffic: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(
        None,
        description="Share of the requests by variant (the name of its application), such as `{blue: 95, green: 5}`; "
        "`main` is the variant in the ingress's own application, and all there is by default.",
    )
    shadow: str | None = Field(
        None, description="Variant that gets copies of images; its answers are compared and never returned."
    )
    shadow_fraction: float = Field(0.1, ge=0, le=1, description="How many of the images are copied to it.")
    limits: LimitsConfig = LimitsConfig()
    admission: AdmissionConfig = AdmissionConfig()
    keys: KeysConfig = KeysConfig()
    prediction_log: PredictionLogConfig | None = Field(
        None, description="The prediction log, `prediction_log: {folder: …}`; none is kept by default."
    )
    feedback: FeedbackConfig | None = Field(
        None, description="Where `POST /v1/feedback` goes, `feedback: {folder: …}`; nowhere by default."
    )
    jobs: JobsConfig | None = Field(None, description="Batch jobs, `jobs: {folder: …}`; none are taken by default.")
    cors_origins: tuple[str, ...] = Field(
        (), description="Sites whose pages may call from a browser, such as `https://photos.example`."
    )

    @property
    def stage_capacity(self) -> int:
        """Images that the other stages take from one ingress replica at a time; further images wait."""
        return self.max_inflight_groups * self.max_group_size

    @model_validator(mode="after")
    def _somebody_answers(self) -> IngressConfig:
        if self.traffic is not None and not any(self.traffic.values()):
            raise ValueError("traffic: no variant has a share above 0, so nobody would answer")
        return self


def parse(kind: type[Model], values: Any) -> Model:
    """Validate a mapping and say in one line what is wrong with it, and where.

    Raises:
        ValueError: Unknown names or values outside their range.
    """
    try:
        return kind.model_validate(values or {})
    except ValidationError as error:
        raise ValueError(describe(error, kind)) from None


def describe(error: ValidationError, kind: type[BaseModel]) -> str:
    """Say in one line what a model's input has wrong, and which names it knows."""
    return describe_errors(error.errors(), kind.model_fields)


def describe_errors(errors: Iterable[Mapping[str, Any]], names: Iterable[str]) -> str:
    """Say in one line what pydantic found wrong, and which names there are."""
    wrong = []
    for each in errors:
        where = ".".join(map(str, each["loc"])) or "input"
        unknown = each["type"] == "extra_forbidden"
        wrong.append(f"{where}: unknown name" if unknown else f"{where}: {each['msg']} (got {each['input']!r:.60})")
    return f"{'; '.join(wrong)}. Known names: {', '.join(names)}"
