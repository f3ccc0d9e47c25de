"""The stages on Ray Data: shards go through workers on any number of nodes; the only file here that knows Ray."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from serve_app.batch.results import Done, Job
from serve_app.batch.worker import Decoded, Decoder, Predictor
from serve_app.errors import SourceError
from serve_app.scheduling import idle_workers

MAX_BLOCKS = 4096  # each costs the command a millisecond at the start


@dataclass(frozen=True)
class Sizes:
    """How many workers there are; each takes one CPU.

    Attributes:
        workers: Workers with a model; None is one for each CPU that there is, or for each GPU's share.
        gpus: GPUs of each of them; a fraction shares one.
        decoders: Workers that decode for them; with 0 each decodes for itself.
        background: They take only the CPU time that nobody else wants.
    """

    workers: int | None = None
    gpus: float = 0.0
    decoders: int = 0
    background: bool = False


class Decode:
    """Stage of CPUs: a shard's number -> its crops."""

    def __init__(self, job: Job) -> None:
        """See Decoder."""
        self._decode = Decoder(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Handle one shard."""
        found = self._decode(row["shard"])
        return {"crops": found.crops, "rest": pickle.dumps((found.shard, found.names, found.errors))}


class Predict:
    """Stage of models: crops -> what was written."""

    def __init__(self, job: Job) -> None:
        """See Predictor."""
        self._predict = Predictor(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Handle one shard."""
        shard, names, errors = pickle.loads(row["rest"])
        return self._predict(Decoded(shard, names, np.asarray(row["crops"]), errors))._asdict()


class DecodeAndPredict:
    """Both in one worker, where models run on CPUs: no pixel leaves it."""

    def __init__(self, job: Job) -> None:
        """See Decoder and Predictor."""
        self._decode, self._predict = Decoder(job), Predictor(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Handle one shard."""
        return self._predict(self._decode(row["shard"]))._asdict()


def connect(address: str | None) -> None:
    """Join a Ray cluster, or start a Ray of our own on this machine that ends with us.

    Raises:
        SourceError: There is none at that address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, **quiet)
    except (ConnectionError, ValueError) as error:
        raise SourceError(f"no Ray at {address}: {' '.join(str(error).split())}") from None


def models_on(sizes: Sizes) -> int:
    """How many models fit the cluster as it is now, beside the decoders."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call] # Ray leaves it so
    if sizes.gpus:
        return max(1, int(there.get("GPU", 0) / sizes.gpus))
    return max(1, int(there.get("CPU", 1)) - sizes.decoders)


def run(job: Job, shards: Sequence[int], sizes: Sizes) -> Iterator[Done]:
    """Do shards; yields each when its part is written.

    Raises:
        ray.exceptions.RayError: A worker failed, or nothing was done for half an hour; parts written before stay.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    settings: dict[str, Any] = {"fn_constructor_args": (job,), **(idle_workers() if sizes.background else {})}
    data: Any = ray.data.from_items(
        [{"shard": shard} for shard in shards], override_num_blocks=min(len(shards), MAX_BLOCKS)
    )
    if sizes.decoders:
        data = data.map(Decode, compute=ActorPoolStrategy(size=sizes.decoders), num_cpus=1, **settings)
    models = ActorPoolStrategy(size=sizes.workers or models_on(sizes))
    stage = Predict if sizes.decoders else DecodeAndPredict
    data = data.map(stage, compute=models, num_cpus=1, num_gpus=sizes.gpus, **settings)
    for row in data.iter_rows():
        yield Done(**row)
