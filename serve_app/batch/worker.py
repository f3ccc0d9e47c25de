"""What one worker does with one shard: read, decode, classify, write. The online path's own decoder and model."""

from __future__ import annotations

import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from serve_app.batch.results import Done, Job, Output
from serve_app.batch.sources import open_source
from serve_app.errors import ServiceError, SourceError, TooLargeError
from serve_app.inference.card import load_card
from serve_app.messages import ClassifyRequest, ClassifyResult
from serve_app.preprocessing.transform import preprocess


class Decoded(NamedTuple):
    """A shard between its two stages.

    Attributes:
        shard: Its number.
        names: Of its images.
        crops: uint8, (N, crop_px, crop_px, 3): of those that could be decoded, in their order.
        errors: For each image, code and detail of what is wrong with it, if something is.
    """

    shard: int
    names: list[str]
    crops: np.ndarray
    errors: list[tuple[str, str] | None]


class Decoder:
    """The first half: names -> crops."""

    def __init__(self, job: Job) -> None:
        """Open the source and the listing."""
        self._source, self._output = open_source(job.source), Output(job.out)
        self._transform, self._limits = load_card(job.weights).transform, job.limits
        self._threads = ThreadPoolExecutor(max(1, self._source.ahead))

    def __call__(self, shard: int) -> Decoded:
        """Decode a shard; an image that fails costs only itself."""
        names = self._output.shard(shard)
        side = self._transform.crop_px
        crops = np.empty((len(names), side, side, 3), np.uint8)
        errors: list[tuple[str, str] | None] = []
        good = 0
        for encoded in self._read(names):
            try:
                if isinstance(encoded, ServiceError):
                    raise encoded
                crops[good] = preprocess(encoded, self._transform, self._limits.max_pixels).pixels
            except ServiceError as error:
                errors.append((error.code, str(error)))
            else:
                errors.append(None)
                good += 1
        return Decoded(shard, names, crops[:good], errors)

    def _read(self, names: Sequence[str]) -> Iterator[bytes | ServiceError]:
        """Read in order, a few at a time where each takes long to come."""
        under_way: deque[Future[bytes | ServiceError]] = deque()
        for name in names:
            if not self._source.ahead:
                yield self._read_one(name)
                continue
            under_way.append(self._threads.submit(self._read_one, name))
            if len(under_way) > self._source.ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _read_one(self, name: str) -> bytes | ServiceError:
        limit = self._limits.max_image_bytes
        try:
            encoded = self._source.read(name, limit)
        except (OSError, zipfile.BadZipFile) as error:
            return SourceError(
                f"cannot be read: {getattr(error, 'strerror', None) or error}"
            )  # no paths of the server's
        if len(encoded) > limit:
            return TooLargeError(f"the image has more than {limit / 2**20:.1f} MB, the limit")
        return encoded


class Predictor:
    """The second half: crops -> a part of the results."""

    def __init__(self, job: Job) -> None:
        """Load, verify and warm the model; it uses one core, or the GPU that this worker has.

        Raises:
            WeightsError, EngineError: It cannot be had; the message is one sentence.
        """
        # Imported here: only workers pay for torch (seconds and 400 MB).
        from serve_app.inference.engine import ResNetEngine
        from serve_app.inference.weights import load_model

        model, card = load_model(job.weights)
        self._engine = ResNetEngine(model, card, job.engine, batches=(job.batch,))
        self._engine.warm_up(job.batch)
        self._version = card.version
        self._output, self._top_k, self._batch = Output(job.out), job.top_k, job.batch
        self._threads = ThreadPoolExecutor(self._engine.workers)

    def __call__(self, decoded: Decoded) -> Done:
        """Classify a shard and write its part."""
        crops, size = decoded.crops, self._batch
        batches = [crops[start : start + size] for start in range(0, len(crops), size)]
        answers = (answer for batch in self._threads.map(self._classify, batches) for answer in batch)
        rows = [
            self._row(name, error, None if error else next(answers))
            for name, error in zip(decoded.names, decoded.errors, strict=True)
        ]
        return self._output.write_part(decoded.shard, rows)

    def _classify(self, crops: np.ndarray) -> list[ClassifyResult]:
        return self._engine.classify([ClassifyRequest(crop, self._top_k) for crop in crops])

    def _row(self, name: str, error: tuple[str, str] | None, found: ClassifyResult | None) -> dict[str, Any]:
        """A row of the results, as output.SCHEMA has it."""
        code, detail = error or (None, None)
        return {
            "path": name.encode(errors="surrogateescape").decode(errors="replace"),
            "labels": found and list(found.labels),
            "scores": found and list(found.scores),
            "class_ids": found and list(found.class_ids),
            "margin": found and found.margin,
            "entropy": found and found.entropy,
            "error": code,
            "detail": detail,
            "version": self._version,
        }
