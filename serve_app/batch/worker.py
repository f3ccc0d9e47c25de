"""Read, decode, classify and write one shard, with the decoder and the model of the online path."""

from __future__ import annotations

import errno
import logging
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serve_app.batch.outages import describe_outage
from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.results import CompletedShard, ResultsFolder, schema
from serve_app.batch.sources import open_source
from serve_app.batcher import run_isolated
from serve_app.errors import (
    ModelFailedError,
    OverloadedError,
    ServiceError,
    SourceError,
    SourceUnavailableError,
    TooLargeError,
)
from serve_app.heads.taught import HeadResult
from serve_app.heads.versions import read_head
from serve_app.inference.card import load_card
from serve_app.messages import ClassifyRequest, ClassifyResult, Features, Outcome
from serve_app.preprocessing.transform import preprocess

log = logging.getLogger("serve_app")


class DecodedShard(NamedTuple):
    """A shard between its two stages."""

    shard: int
    names: list[str]
    crops: np.ndarray  # of the images without an error, in the order of names; uint8, (N, crop_px, crop_px, 3), RGB
    errors: list[tuple[str, str] | None]  # code and detail per image; None for an image without an error


class Decoder:
    """Decodes shards: image names to crops."""

    def __init__(self, job: BatchJobConfig) -> None:
        self._source, self._results = open_source(job.source), ResultsFolder(job.out)
        self._transform, self._limits = load_card(job.weights).transform, job.limits
        self._threads = ThreadPoolExecutor(max(1, self._source.read_ahead))

    def __call__(self, shard: int) -> DecodedShard:
        """Decode a shard; an image that cannot be decoded becomes an error and leaves the others alone.

        Raises:
            SourceUnavailableError: The source is away; its images would become errors that a later read does not meet.
        """
        names = self._results.shard_names(shard)
        side = self._transform.crop_px
        crops = np.empty((len(names), side, side, 3), np.uint8)
        errors: list[tuple[str, str] | None] = []
        decoded = 0
        for encoded in self._read(names):
            crop = encoded if isinstance(encoded, ServiceError) else self._decode(encoded)
            if isinstance(crop, ServiceError):
                errors.append((crop.code, str(crop)))
            else:
                crops[decoded] = crop
                errors.append(None)
                decoded += 1
        return DecodedShard(shard, names, crops[:decoded], errors)

    def _decode(self, encoded: bytes) -> np.ndarray | ServiceError:
        try:
            return preprocess(encoded, self._transform, self._limits.max_pixels).pixels
        except ServiceError as error:
            return error
        except MemoryError:
            return OverloadedError("there is no memory to decode this image")
        except Exception:
            log.exception("an image of a batch job")
            return ServiceError("this image could not be decoded; the server's log has the reason")

    def _read(self, names: Sequence[str]) -> Iterator[bytes | ServiceError]:
        """Yield the files in order, with up to ``read_ahead`` reads in flight."""
        in_flight: deque[Future[bytes | ServiceError]] = deque()
        for name in names:
            if not self._source.read_ahead:
                yield self._read_one(name)
                continue
            in_flight.append(self._threads.submit(self._read_one, name))
            if len(in_flight) > self._source.read_ahead:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()

    def _read_one(self, name: str) -> bytes | ServiceError:
        limit = self._limits.max_image_bytes
        try:
            encoded = self._source.read(name, limit)
        except (OSError, zipfile.BadZipFile) as error:
            # EIO is one unreadable block more often than a source that is away, and would come again.
            if isinstance(error, OSError) and error.errno != errno.EIO and (sentence := describe_outage(error)):
                raise SourceUnavailableError(sentence) from error
            # strerror, because str(OSError) holds the server's path and clients see this text
            return SourceError(f"cannot be read: {getattr(error, 'strerror', None) or error}")
        if len(encoded) > limit:
            return TooLargeError(f"the image is larger than the limit of {limit / 2**20:.1f} MB")
        return encoded


class Predictor:
    """Classifies decoded shards, crops to a written part, with a model on one core or on this worker's GPU."""

    def __init__(self, job: BatchJobConfig) -> None:
        # Imported here, because the runtime takes a second and 100 MB, and only workers need it.
        from serve_app.inference.engine import ResNetEngine
        from serve_app.inference.weights import load_weights

        arrays, card = load_weights(job.weights)
        self._engine = ResNetEngine(arrays, card, job.engine, batches=(job.batch_size,))
        self._engine.warm_up(job.batch_size)
        self._version = card.version
        self._results, self._top_k, self._batch_size = ResultsFolder(job.out), job.top_k, job.batch_size
        self._head = read_head(Path(job.head), card.ref) if job.head else None
        self._columns = schema(job.embed, job.head is not None)
        self._features: Features = "pooled" if job.embed or job.head else None
        self._threads = ThreadPoolExecutor(self._engine.workers)

    def __call__(self, decoded: DecodedShard) -> CompletedShard:
        """Classify a shard and write its part."""
        crops, size = decoded.crops, self._batch_size
        batches = [crops[start : start + size] for start in range(0, len(crops), size)]
        outcomes = (outcome for batch in self._threads.map(self._classify, batches) for outcome in batch)
        rows = [
            self._row(name, error, None if error else next(outcomes))
            for name, error in zip(decoded.names, decoded.errors, strict=True)
        ]
        return self._results.write_part(decoded.shard, rows, self._columns)

    def _classify(self, crops: np.ndarray) -> list[Outcome]:
        requests = [ClassifyRequest(crop, self._top_k, features=self._features) for crop in crops]
        return classify_each(self._engine.classify, requests)

    def _row(self, name: str, error: tuple[str, str] | None, outcome: Outcome | None) -> dict[str, Any]:
        """Return a row of results.schema."""
        result = outcome if isinstance(outcome, ClassifyResult) else None
        named: ClassifyResult | HeadResult | None = result
        if self._head and result and result.embedding is not None:
            named = self._head.classify(result.embedding, self._top_k)
        code, detail = (outcome.code, str(outcome)) if isinstance(outcome, ServiceError) else error or (None, None)
        return {
            "path": name.encode(errors="surrogateescape").decode(errors="replace"),
            "labels": named and list(named.labels),
            "scores": named and list(named.scores),
            "class_ids": named and list(named.class_ids),
            "margin": named and named.margin,
            "entropy": named and named.entropy,
            "error": code,
            "detail": detail,
            "version": self._version,
            "none_of_these": named.none_of_these if isinstance(named, HeadResult) else None,
            "embedding": result and result.embedding,
        }


def classify_each(
    classify: Callable[[list[ClassifyRequest[np.ndarray]]], Sequence[ClassifyResult]],
    requests: list[ClassifyRequest[np.ndarray]],
) -> list[Outcome]:
    """Classify a batch; an image at fault gets its error in place of a result.

    Raises:
        ModelFailedError: The model is broken. The shard stays unwritten, and another run of the job goes on from it.
        Exception: Anything else that is not a ServiceError.
    """
    outcomes: list[Outcome] = []
    for outcome in run_isolated(classify, requests):
        if isinstance(outcome, ModelFailedError) or not isinstance(outcome, ClassifyResult | ServiceError):
            raise outcome
        outcomes.append(outcome)
    return outcomes
