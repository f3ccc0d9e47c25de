"""Run one batch job: list the source, classify what an earlier run has not, write a summary."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import tqdm

from serve_app.batch.outages import naming_outages
from serve_app.batch.plan import BatchJobConfig, WorkerPlan
from serve_app.batch.results import CompletedShard, ResultsFolder
from serve_app.batch.sources import open_source
from serve_app.files import atomic_write
from serve_app.heads.versions import read_head
from serve_app.inference.card import load_card


class ExitCode(IntEnum):
    """Exit codes of ``serve-app predict``; the job supervisor acts on them."""

    OK = 0
    FAILED = 1  # workers failed; the same command goes on from there
    INVALID = 2  # arguments, source or weights are wrong; trying again does not help
    UNAVAILABLE = 69  # source, weights or disk space are away; the same command goes on from there later
    BUSY = 75  # another run writes to the same results
    INTERRUPTED = 130  # by SIGINT or SIGTERM; the same command goes on from there


class JobFailedError(Exception):
    """Workers failed or stood still; complete parts stay, and another run goes on from them."""


class Progress:
    """Counts classified images; shows them as a bar on stderr, or writes them to a file."""

    def __init__(self, images: int, completed: Sequence[CompletedShard], file: Path | None) -> None:
        self.done = self.resumed = sum(shard.images for shard in completed)
        self.errors = sum((Counter(shard.errors) for shard in completed), Counter[str]())
        self._images, self._file, self._start = images, file, time.monotonic()
        self.bar = tqdm.tqdm(
            total=images, initial=self.done, unit="image", smoothing=0.1, mininterval=0.5, disable=file is not None
        )
        self._write()

    def add(self, shard: CompletedShard) -> None:
        """Count a shard that was just completed."""
        self.done += shard.images
        self.errors.update(shard.errors)
        self.bar.update(shard.images)
        self.bar.set_postfix(failed=self.failed, refresh=False)
        self._write()

    @property
    def failed(self) -> int:
        """Images with an error, those of earlier runs included."""
        return self.errors.total()

    @property
    def seconds(self) -> float:
        """Seconds since this run began to classify."""
        return time.monotonic() - self._start

    @property
    def images_per_s(self) -> float:
        """Throughput of this run."""
        return (self.done - self.resumed) / max(self.seconds, 1e-3)

    def _write(self) -> None:
        if self._file is None:
            return
        throughput = self.images_per_s
        eta_s = round((self._images - self.done) / throughput, 1) if throughput else None
        content = {"total": self._images, "done": self.done, "failed": self.failed, "eta_s": eta_s}
        with atomic_write(self._file) as path:
            path.write_text(json.dumps(content))


def predict(
    job: BatchJobConfig, plan: WorkerPlan, shard_size: int, address: str | None, progress_file: Path | None
) -> dict[str, Any]:
    """Classify every image of a source into a folder of Parquet parts; return the content of ``summary.json``.

    A run that was stopped or killed leaves complete parts behind; the next run of the same job classifies the rest. An
    image that cannot be classified becomes a row with an error.

    Args:
        job: Source, results, weights and settings.
        plan: How many workers.
        shard_size: Images per part, which is what a crash costs a worker; an earlier run's listing keeps its own.
        address: Address of a Ray cluster; None starts a local Ray.
        progress_file: Write progress to this file as JSON instead of a bar on stderr.

    Raises:
        BusyError: Another run writes to the same results.
        SourceUnavailableError, WeightsUnavailableError: A later run can succeed: the disk is full, for example.
        SourceError: The source or the folder of results cannot be used.
        WeightsError: The weights cannot be loaded.
        JobFailedError: Workers failed, or completed nothing for half an hour.
    """
    results = ResultsFolder(job.out)
    with naming_outages(), results.lock():
        card = load_card(job.weights)
        if job.head:
            read_head(Path(job.head), card.ref)  # a head of other weights fails the job before it starts
        manifest = results.begin(job, card, _names(job.source), shard_size)
        completed = results.completed_shards()
        progress = Progress(manifest["images"], completed, progress_file)
        missing = sorted(set(range(manifest["shards"])) - {shard.shard for shard in completed})
        with progress.bar:
            if missing:
                _classify(job, plan, missing, address, progress)
        summary = {
            "source": job.source,
            "out": job.out,
            "version": card.version,
            "images": progress.done,
            "ok": progress.done - progress.failed,
            "failed": progress.failed,
            "errors": dict(progress.errors),
            "resumed": progress.resumed,
            "seconds": round(progress.seconds, 1),
            "images_per_s": round(progress.images_per_s, 1),
        }
        results.write_json("summary.json", summary)
    return summary


def _names(source: str) -> Iterator[str]:
    """Yield the names of a source, which is opened only if they are needed: the zip of a listed job may be gone."""
    yield from open_source(source).names()


def _classify(
    job: BatchJobConfig, plan: WorkerPlan, shards: list[int], address: str | None, progress: Progress
) -> None:
    # Imported here, because Ray takes seconds to import and errors in the arguments must show at once.
    import ray

    from serve_app.batch import dataset

    dataset.connect(address)
    try:
        for shard in dataset.run(job, shards, plan):
            progress.add(shard)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise JobFailedError(" ".join(str(cause).split())[:1000]) from error
    finally:
        ray.shutdown()
