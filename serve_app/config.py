"""Declare every setting of the service: its type, unit, default and meaning.

``AppConfig`` is ``args:`` of an application in the Serve config file: a change restarts the application.
``ClassifierConfig`` and ``IngressConfig`` are ``user_config:`` of a deployment: a change takes effect within seconds
and restarts nothing. Capacity (replicas, CPUs, GPUs, queue limits) belongs to Ray Serve's own ``deployments:`` keys.
tests/support/settings_table.py writes docs/configuration.md from the declarations below.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from serve_app.heads_config import HeadsConfig
from serve_app.images_by_url_config import ImagesByUrlConfig
from serve_app.settings import Bytes, Days, FrozenModel, Images, MiB, Rows, Seconds, Settings, Sha256, Unit


class WeightsConfig(FrozenModel):
    """Which weights to serve. A plain string sets ``source`` alone."""

    source: str = Field(
        "demo", description="`imagenet`, `demo`, or path or URI of a .safetensors file with its card (.json) beside it."
    )
    sha256: Sha256 | None = Field(None, description="SHA-256 of the file, in hex; required for a path or URI.")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value


class EngineConfig(FrozenModel):
    """How the model runs. A plain string sets ``runtime`` alone."""

    runtime: Literal["auto", "cuda", "torch", "onnxruntime", "winograd", "amx"] = Field(
        "auto", description="Runtime of the model; `auto` takes the GPU, or the fastest runtime on this CPU."
    )
    precision: Literal["auto", "fp32", "fp16", "bf16", "int16", "int8"] = Field(
        "auto", description="Number format; `auto` is fp16 on a GPU, else fp32. int16 and int8 always run on the CPU."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"runtime": value} if isinstance(value, str) else value


class AppConfig(FrozenModel):
    """``args:`` of an application that holds a model."""

    weights: WeightsConfig = WeightsConfig()
    engine: EngineConfig = EngineConfig()
    one_process: bool = Field(
        False,
        description="Run all stages in the Ingress's process; in a variant (`build_model`), in the Classifier's.",
    )


class LimitsConfig(FrozenModel):
    """Limits of one request."""

    max_image_bytes: Bytes = Field(20 * MiB, description="Largest encoded image.")
    max_images: Images = Field(64, description="Most images in one request.")
    max_body_bytes: Bytes = Field(64 * MiB, description="Largest request body.")
    max_pixels: Annotated[int, Unit("pixels")] = Field(
        50_000_000,
        gt=0,
        le=178_000_000,  # Pillow itself refuses larger images
        description="Most pixels that the header of an image may declare.",
    )
    deadline_s: Seconds = Field(30.0, description="Longest time that a request may take.")
    min_body_bytes_per_s: Bytes = Field(4096, description="Lowest rate at which a request body may arrive.")
    body_grace_s: Seconds = Field(
        10.0, description="Longest time that a body may fall behind that rate, such as a pause of a mobile network."
    )


class AdmissionConfig(Settings):
    """Admission control of one ingress replica: requests above these limits get 503 with ``Retry-After``.

    So does a request that would miss its deadline (`limits.deadline_s`, or the client's own). A caller may take three
    times as much of a limit as it leaves free, so a caller alone may take three quarters.
    """

    renamed: ClassVar = {"max_under_way": "max_inflight_images", "max_held_bytes": "max_buffered_bytes"}
    removed: ClassVar = dict.fromkeys(
        ("max_queue_wait_s", "max_queue_s"),
        "a request waits as long as its deadline allows; set `limits.deadline_s`, or X-Request-Timeout-Ms in a call",
    )
    max_inflight_images: Images = Field(1024, description="Most images in flight, however short their wait.")
    max_buffered_bytes: Bytes = Field(512 * MiB, description="Most bytes of request bodies in memory.")


class KeysConfig(FrozenModel):
    """API keys. Every client may call until `hashes`, `file` or `env` is set; all keys of the three are valid."""

    hashes: dict[str, Sha256] | None = Field(
        None, description="Name of each client -> SHA-256 of its API key, in hex: `{alice: 3f0c…}`."
    )
    file: str | None = Field(
        None, description="File with a line `name sha256` per key; a change takes effect within a second."
    )
    env: str | None = Field(None, description="Name of an environment variable with a line `name sha256` per key.")
    images_per_s: Annotated[float | None, Unit("images per second")] = Field(
        None, gt=0, description="Rate limit of each key at each ingress replica; unlimited by default."
    )
    burst: Images = Field(100, description="Images that a key may send at once before the rate limit applies.")
    bytes_per_s: Annotated[float | None, Unit("bytes per second")] = Field(
        None, gt=0, description="Rate limit of the request bodies of each key at each ingress replica."
    )
    burst_bytes: Bytes = Field(256 * MiB, description="Bytes that a key may send at once before that limit applies.")

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return any(source is not None for source in (self.hashes, self.file, self.env))


class PredictionLogConfig(Settings):
    """The prediction log: one row per image, failed ones included. `keep_days`, `max_bytes`: not for a bucket."""

    renamed: ClassVar = {"max_waiting": "max_buffered_rows"}
    folder: str = Field(..., description="Folder or bucket (`s3://…`) of the rows. Relative: as for jobs.")
    keep_days: Days = Field(90, ge=1, description="Days until rows are deleted; their counts per hour stay.")
    max_bytes: Bytes = Field(1024 * MiB, description="Most bytes in the folder: the oldest rows go, then new ones.")
    flush_s: Seconds = Field(5.0, le=3600, description="Longest wait of a row in memory; a killed process loses it.")
    rows_per_file: Rows = Field(20_000, description="Rows that are written at once, even before `flush_s` has passed.")
    max_buffered_rows: Rows = Field(100_000, description="Most rows in memory; further rows are dropped and counted.")
    embeddings: bool = Field(False, description="Keep the embedding of each image too, 1 kB a row: personal data.")


class FeedbackConfig(FrozenModel):
    """Votes of people on the results, and the images that they correct."""

    folder: str = Field(..., description="Folder of the votes; all ingress replicas share it. Relative: as for jobs.")
    keep_images: bool = Field(False, description="Keep images that people send with the right class, to train on them.")
    keep_days: Annotated[float | None, Unit("days")] = Field(
        None, gt=0, description="Time until votes and images are deleted; by default they stay."
    )
    max_votes: Annotated[int, Unit("votes")] = Field(1_000_000, ge=1, description="Most votes in the folder.")
    max_kept_bytes: Bytes = Field(10 * 1024 * MiB, description="Most bytes of all kept images.")


class JobsConfig(Settings):
    """Batch prediction jobs over HTTP; one job runs at a time."""

    renamed: ClassVar = {"max_waiting": "max_queued_jobs", "models": "workers"}
    folder: str = Field(
        ..., description="Folder of uploads and results, shared by all nodes; a relative one is in the data folder."
    )
    sources: tuple[str, ...] = Field(
        (), description="Folders and bucket prefixes (`s3://…`) that a job may read; if empty, a job must upload a zip."
    )
    max_zip_bytes: Bytes = Field(500 * MiB, description="Largest zip.")
    max_zip_entries: Annotated[int, Unit("entries")] = Field(100_000, gt=0, description="Most entries of a zip.")
    max_unpacked_bytes: Bytes = Field(4096 * MiB, description="Most bytes of all files of a zip after unpacking.")
    max_upload_s: Seconds = Field(4 * 3600.0, description="Longest time that the upload of a zip may take.")
    max_queued_jobs: Annotated[int, Unit("jobs")] = Field(
        20, ge=1, description="Most jobs of one API key that wait or run."
    )
    max_total_queued_jobs: Annotated[int, Unit("jobs")] = Field(
        100, ge=1, description="Most jobs of all clients that wait or run."
    )
    workers: Annotated[int | None, Unit("workers")] = Field(
        None, ge=1, description="Workers of a job, each with one CPU and one model; one per CPU by default."
    )
    keep_days: Annotated[float, Unit("days")] = Field(7.0, gt=0, description="Time until an ended job is deleted.")
    max_ended_jobs: Annotated[int, Unit("jobs")] = Field(
        1000, ge=1, description="Most ended jobs to keep; the oldest are deleted first."
    )
    max_bytes: Bytes = Field(10 * 1024 * MiB, description="Most bytes of all ended jobs; the oldest are deleted first.")


class BatchConfig(Settings):
    """How batches form."""

    renamed: ClassVar = {"max_batch": "max_batch_size", "max_wait_ms": "max_batch_wait_ms"}
    max_batch_size: Images = Field(16, le=1024, description="Most images in one batch.")
    max_batch_wait_ms: Annotated[float, Unit("milliseconds")] = Field(
        20.0,
        ge=0,
        le=1000,
        description="Longest time that an image waits for other images in flight to join its batch.",
    )


class ClassifierConfig(BatchConfig):
    """``user_config:`` of the Classifier: batches, and weights that change live."""

    weights: WeightsConfig | None = Field(
        None, description="Weights that replace those in `args:`; they load while the current weights serve."
    )


class ResponseConfig(Settings):
    """Defaults of a response."""

    top_k: Annotated[int, Unit("classes")] = Field(10, ge=1, le=1000, description="Classes per image by default.")
    abstain_below: Annotated[float | None, Unit("score, 0-1")] = Field(
        None,
        ge=0,
        le=1,
        description="A result whose best score is lower is flagged `abstain` (not sure); "
        "by default the threshold in the model card, else 0.4.",
    )


class IngressConfig(ResponseConfig):
    """``user_config:`` of the Ingress; the groups below belong to it."""

    renamed: ClassVar = {
        "lanes": "max_inflight_groups",
        "max_group": "max_group_size",
        "shadow_share": "shadow_fraction",
        "door": "admission",
        "log": "prediction_log",
    }
    max_inflight_groups: Annotated[int, Unit("groups")] = Field(
        4,
        ge=1,
        le=1024,
        description="Groups of images in flight at one ingress replica; further images wait for the next.",
    )
    max_group_size: Images = Field(8, le=64, description="Most images in one group.")
    traffic: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(
        None,
        description="Share of the requests per variant (the name of its application): `{blue: 95, green: 5}`; "
        "by default all requests go to `main`, the variant in the ingress's own application.",
    )
    shadow: str | None = Field(None, description="Variant that gets copies of images; its results are only compared.")
    shadow_fraction: Annotated[float, Unit("0-1")] = Field(0.1, ge=0, le=1, description="Fraction of images to copy.")
    model_aliases: tuple[str, ...] = Field((), description="Further names of the model in paths, such as an old one.")
    classifier: ClassifierConfig | None = Field(
        None,
        description="`user_config` of the Classifier, for an application with `one_process: true`.",
    )
    limits: LimitsConfig = LimitsConfig()
    admission: AdmissionConfig = AdmissionConfig()
    keys: KeysConfig = KeysConfig()
    prediction_log: PredictionLogConfig | None = Field(None, description="`{folder: …}` turns on the prediction log.")
    feedback: FeedbackConfig | None = Field(None, description="`{folder: …}` turns on `POST /v1/feedback`.")
    jobs: JobsConfig | None = Field(None, description="`{folder: …}` turns on batch jobs over HTTP.")
    heads: HeadsConfig | None = Field(None, description="`{folder: …}` turns on heads: classes that clients teach.")
    images_by_url: ImagesByUrlConfig | None = Field(
        None, description="`{allowed_hosts: […]}` turns on images by URL in JSON."
    )
    open: bool = Field(
        False,
        description="Let everybody call who reaches the API. An API that listens beyond this machine needs `keys` or "
        "this, and a live update that removes `keys` needs this.",
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins whose pages may call the API from a browser, such as `https://photos.example`."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Names under which clients reach the service, such as `photos.example` or `*.photos.example`; "
        "`*` is any name. IP addresses, names without a dot and this machine's own name are always allowed. "
        "If empty, other names are refused only while no API key is required.",
    )

    @property
    def stage_capacity(self) -> int:
        """Images that the other stages take from one ingress replica at a time; further images wait."""
        return self.max_inflight_groups * self.max_group_size

    @model_validator(mode="after")
    def _require_keys_or_open(self) -> IngressConfig:
        if self.open and self.keys.required:
            raise ValueError("open: `keys` are set, so a call needs one; remove `open: true` or `keys`")
        return self

    @model_validator(mode="after")
    def _require_a_share_above_0(self) -> IngressConfig:
        if self.traffic is not None and not any(self.traffic.values()):
            raise ValueError("traffic: no variant has a share above 0, so none would answer; raise a share")
        return self
