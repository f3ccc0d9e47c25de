"""Settings of a batch job, and how many workers it gets."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.config import EngineConfig, FrozenModel, LimitsConfig, WeightsConfig


class BatchJobConfig(FrozenModel):
    """Everything a worker needs to know about its job.

    Attributes:
        source: Absolute path of a folder or zip, a glob pattern, or a bucket prefix such as ``s3://bucket/photos``.
        out: Absolute path of the folder of results, or a bucket prefix.
        weights: Weights to classify with.
        engine: Runtime and precision.
        top_k: Classes per image.
        batch_size: Images per call of the model.
        limits: Largest image, in bytes and pixels.
    """

    source: str
    out: str
    weights: WeightsConfig = WeightsConfig()
    engine: EngineConfig = EngineConfig()
    top_k: int = 10
    batch_size: int = 8
    limits: LimitsConfig = LimitsConfig()


@dataclass(frozen=True)
class WorkerPlan:
    """Number of workers; each takes one CPU.

    Attributes:
        workers: Workers with a model; None is one per CPU, or one per share of a GPU.
        gpus: GPUs per worker; a fraction shares a GPU.
        decoders: Workers that only decode, for the workers with a model; 0 lets each worker decode for itself.
        background: Run in SCHED_IDLE (see scheduling.py), so that online requests come first.
    """

    workers: int | None = None
    gpus: float = 0.0
    decoders: int = 0
    background: bool = False
