"""Settings of a batch job, and how many workers it gets."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.config import EngineConfig, LimitsConfig, WeightsConfig
from serve_app.settings import FrozenModel


class BatchJobConfig(FrozenModel):
    """Everything a worker needs to know about its job."""

    source: str  # absolute path of a folder or zip, a glob pattern, or a bucket prefix such as s3://bucket/photos
    out: str  # absolute path of the folder of results, or a bucket prefix
    weights: WeightsConfig = WeightsConfig()
    engine: EngineConfig = EngineConfig()
    top_k: int = 10
    embed: bool = False  # the results have the column ``embedding``
    head: str | None = None  # absolute path of a version of a head, whose classes the results name
    batch_size: int = 8  # images per call of the model
    limits: LimitsConfig = LimitsConfig()


@dataclass(frozen=True)
class WorkerPlan:
    """How many workers a job gets; each takes one CPU."""

    workers: int | None = None  # with a model; None is one per CPU, or one per share of a GPU
    gpus: float = 0.0  # per worker with a model; a fraction shares a GPU
    decoders: int = 0  # workers that only decode; 0 lets every worker with a model decode for itself
    background: bool = False  # run in SCHED_IDLE, so that online requests come first
