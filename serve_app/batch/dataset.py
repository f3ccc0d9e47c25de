"""Run the stages on Ray Data: shards go through workers on any number of nodes. Only this file imports Ray."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from serve_app.batch.plan import BatchJobConfig, WorkerPlan
from serve_app.batch.results import CompletedShard
from serve_app.batch.worker import DecodedShard, Decoder, Predictor
from serve_app.errors import SourceError
from serve_app.scheduling import idle_workers

MAX_BLOCKS = 4096  # each block costs the command 1 ms at the start


class Decode:
    """First of two stages: a shard's number to its crops, on CPU workers."""

    def __init__(self, job: BatchJobConfig) -> None:
        self._decode = Decoder(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Decode one shard; Ray Data moves the crops as one array."""
        decoded = self._decode(row["shard"])
        return {"crops": decoded.crops, "rest": pickle.dumps((decoded.shard, decoded.names, decoded.errors))}


class Predict:
    """Second of two stages: crops to a written part, on workers with a model."""

    def __init__(self, job: BatchJobConfig) -> None:
        self._predict = Predictor(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Classify one shard."""
        shard, names, errors = pickle.loads(row["rest"])
        return self._predict(DecodedShard(shard, names, np.asarray(row["crops"]), errors))._asdict()


class DecodeAndPredict:
    """Both stages in one worker, so that no pixels leave its process; for models on CPUs."""

    def __init__(self, job: BatchJobConfig) -> None:
        self._decode, self._predict = Decoder(job), Predictor(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Decode and classify one shard."""
        return self._predict(self._decode(row["shard"]))._asdict()


def connect(address: str | None) -> None:
    """Join the Ray cluster at an address (SourceError if there is none), or start a local Ray for this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    dashboard = None if address else False  # a running cluster keeps its own
    try:
        ray.init(address or "local", include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise SourceError(f"no Ray at {address}: {' '.join(str(error).split())}") from None


def default_workers(plan: WorkerPlan) -> int:
    """Return how many workers with a model fit the cluster as it is now, besides the decoders."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call] # untyped in Ray
    if plan.gpus:
        return max(1, int(resources.get("GPU", 0) / plan.gpus))
    return max(1, int(resources.get("CPU", 1)) - plan.decoders)


def run(job: BatchJobConfig, shards: Sequence[int], plan: WorkerPlan) -> Iterator[CompletedShard]:
    """Classify shards; yield each once its part is written, in any order.

    Raises:
        ray.exceptions.RayError: A worker failed, or no shard was completed for half an hour. Written parts stay.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    options: dict[str, Any] = {"fn_constructor_args": (job,), **(idle_workers() if plan.background else {})}
    rows = [{"shard": shard} for shard in shards]
    data: Any = ray.data.from_items(rows, override_num_blocks=min(len(shards), MAX_BLOCKS))
    if plan.decoders:
        data = data.map(Decode, compute=ActorPoolStrategy(size=plan.decoders), num_cpus=1, **options)
    workers = ActorPoolStrategy(size=plan.workers or default_workers(plan))
    stage = Predict if plan.decoders else DecodeAndPredict
    data = data.map(stage, compute=workers, num_cpus=1, num_gpus=plan.gpus, **options)
    for row in data.iter_rows():
        yield CompletedShard(**row)
