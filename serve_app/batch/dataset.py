"""Run the stages on Ray Data: shards go through workers on any number of nodes. Only this file imports Ray."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from serve_app.batch.outages import describe_outage
from serve_app.batch.plan import BatchJobConfig, WorkerPlan
from serve_app.batch.results import CompletedShard
from serve_app.batch.worker import DecodedShard, Decoder, Predictor
from serve_app.errors import SourceError, SourceUnavailableError
from serve_app.scheduling import idle_workers

MAX_BLOCKS = 4096  # each block costs the command 1 ms at the start


class _Stage:
    """Builds what a worker runs, and turns an error that passes into a row: Ray Data loses the types of exceptions."""

    def __init__(self, job: BatchJobConfig) -> None:
        self._outage: str | None = None
        try:
            self._load(job)
        except Exception as error:
            if (outage := describe_outage(error)) is None:
                raise
            self._outage = outage

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Process one row."""
        if self._outage is None:
            try:
                return self._process(row)
            except Exception as error:
                if (outage := describe_outage(error)) is None:
                    raise
                return self._failed(outage)
        return self._failed(self._outage)

    def _load(self, job: BatchJobConfig) -> None:
        raise NotImplementedError

    def _process(self, row: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _failed(self, outage: str) -> dict[str, Any]:
        return _row(CompletedShard(-1, 0, {}), outage)


class Decode(_Stage):
    """First of two stages: a shard's number to its crops, on CPU workers."""

    def _load(self, job: BatchJobConfig) -> None:
        self._decode = Decoder(job)

    def _process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Decode one shard; Ray Data moves the crops as one array."""
        decoded = self._decode(row["shard"])
        return {"crops": decoded.crops, "rest": pickle.dumps((decoded.shard, decoded.names, decoded.errors))}

    def _failed(self, outage: str) -> dict[str, Any]:
        return {"crops": np.empty((0, 1, 1, 3), np.uint8), "rest": pickle.dumps(outage)}


class Predict(_Stage):
    """Second of two stages: crops to a written part, on workers with a model."""

    def _load(self, job: BatchJobConfig) -> None:
        self._predict = Predictor(job)

    def _process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Classify one shard."""
        rest = pickle.loads(row["rest"])
        if isinstance(rest, str):
            return self._failed(rest)
        shard, names, errors = rest
        return _row(self._predict(DecodedShard(shard, names, np.asarray(row["crops"]), errors)))


class DecodeAndPredict(_Stage):
    """Both stages in one worker, so that no pixels leave its process; for models on CPUs."""

    def _load(self, job: BatchJobConfig) -> None:
        self._decode, self._predict = Decoder(job), Predictor(job)

    def _process(self, row: dict[str, Any]) -> dict[str, Any]:
        """Decode and classify one shard."""
        return _row(self._predict(self._decode(row["shard"])))


def connect(address: str | None) -> None:
    """Join the Ray cluster at an address, or start a local Ray for this process.

    Raises:
        SourceUnavailableError: No Ray answers there.
        SourceError: The address is not valid.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    dashboard = None if address else False  # a running cluster keeps its own
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address or "local", include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises a plain Exception if it does not start in time on a busy machine
        kind = SourceError if isinstance(error, ValueError) else SourceUnavailableError
        raise kind(f"no Ray at {address}: {' '.join(str(error).split())}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray replaces them: SIGTERM would end with code 15
                signal.signal(number, handler)


def default_workers(plan: WorkerPlan) -> int:
    """Return how many workers with a model fit the cluster as it is now, besides the decoders."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call] # untyped in Ray
    if plan.gpus:
        return max(1, int(resources.get("GPU", 0) / plan.gpus))
    return max(1, int(resources.get("CPU", 1)) - plan.decoders)


def run(job: BatchJobConfig, shards: Sequence[int], plan: WorkerPlan) -> Iterator[CompletedShard]:
    """Classify shards; yield each once its part is written, in any order.

    Raises:
        SourceUnavailableError: Source, weights or disk space are away. Written parts stay.
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
        if outage := row.pop("outage"):
            raise SourceUnavailableError(outage)
        yield CompletedShard(row["shard"], row["images"], json.loads(row["errors"]))


def _row(shard: CompletedShard, outage: str = "") -> dict[str, Any]:
    return {"shard": shard.shard, "images": shard.images, "errors": json.dumps(shard.errors), "outage": outage}
