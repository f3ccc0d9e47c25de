"""A ResNet-18 ready to run: a batch of crops in; classes, activation maps and embeddings out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from serve_app.config import EngineConfig
from serve_app.errors import EngineError, InvalidParameterError, ModelFailedError, UnclassifiableImageError
from serve_app.inference.head import Head, Requests, copy_features, pool
from serve_app.inference.network import Arrays
from serve_app.inference.runtimes.parity import make_test_images
from serve_app.inference.runtimes.select import TIMED_BATCH_SIZES, build_runtime
from serve_app.messages import ClassifyRequest, ClassifyResult
from serve_app.model_card import ModelCard

if TYPE_CHECKING:
    from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner

# Largest difference of the probe's scores from those at the start. Batches of other sizes and GPU graphs round
# differently: by 1e-4 on a CPU, by 0.01 in half precision (tests/unit/inference).
PROBE_TOLERANCE = 0.05
PROBE_CLASSES = 5  # best classes that are compared


class ResNetEngine:
    """Runs one model on the runtime that the settings name, or on the fastest one.

    Args:
        arrays: The weights, as ``weights.load_weights`` returns them.
        card: The model's card.
        config: Runtime and precision; by default fp16 on a GPU, else the fastest fp32 runtime.
        cores: CPU cores that the batches share.
        serving: Another engine of this process serves requests meanwhile and should be disturbed little.
        batches: Batch sizes for which ``auto`` chooses the fastest runtime.

    Attributes:
        card: Labels, transform and version of the weights.
        runtime: Name of the runtime.
        workers: How many threads may call ``classify`` at the same time.
        workers_are_cores: Whether each worker has a CPU core of its own, instead of sharing a GPU.
        probe: A request for a test image, whose scores are known; see check_probe.

    Raises:
        EngineError: The runtime cannot run here, its features differ from the reference, or the weights give scores
            that are not finite numbers.
    """

    def __init__(
        self,
        arrays: Arrays,
        card: ModelCard,
        config: EngineConfig | None = None,
        cores: int = 1,
        serving: bool = False,
        batches: Sequence[int] = TIMED_BATCH_SIZES,
    ) -> None:
        self.card = card
        # NumPy's products are small here. Threads that share one would wait for each other and take cores from batches.
        threadpool_limits(1, "blas")
        self._runtime = runtime = build_runtime(arrays, card, config or EngineConfig(), cores, serving, batches)
        self._head = Head(arrays, card)
        self._gpu = _graph_runner(runtime, self._head, card) if runtime.name == "cuda" else None
        self.runtime, self.workers, self.workers_are_cores = runtime.name, runtime.workers, self._gpu is None
        self._warm_batch = 0  # largest batch that has been run
        image = make_test_images(card.transform.crop_px)[0]
        self.probe = ClassifyRequest(image, PROBE_CLASSES)
        self._probe_scores = self._measure_probe(image)

    def warm_up(self, batch: int) -> None:
        """Run batches of one and of ``batch`` images, so that no request pays for lazy initialization.

        Raises:
            EngineError: The model's scores in such a batch are wrong or not finite numbers.
        """
        if batch <= self._warm_batch:
            return
        if self._gpu:
            self._gpu.warm_up(batch)
        sizes = [size for size in (1, batch) for _ in range(self.workers)]
        with ThreadPoolExecutor(self.workers) as threads:
            batches = list(threads.map(lambda size: self._run([self.probe] * size), sizes))
        try:
            for result in (result for results in batches for result in results):
                self.check_probe(result)
        except ModelFailedError as error:
            raise EngineError(f"engine {self.runtime}: {error}") from error
        self._warm_batch = batch

    def classify(self, requests: Requests) -> list[ClassifyResult]:
        """Classify a batch of crops; return one result per request, in the same order.

        Raises:
            InvalidParameterError: A request explains a class that the model does not have (422).
            ModelFailedError: The model or its device is broken; no result of the batch can be trusted (503).
            UnclassifiableImageError: An image of the batch gives scores that are not finite numbers (422).
            MemoryError: The batch needs more memory than the machine or the GPU has left.
        """
        for request in requests:
            if isinstance(request.explain, int) and not 0 <= request.explain < self._head.classes:
                raise InvalidParameterError(
                    f"explain_class: {request.explain} is not a class id; the largest is {self._head.classes - 1}"
                )
        try:
            results = self._run(requests)
        except RuntimeError as error:
            if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):  # torch's
                raise MemoryError(" ".join(str(error).split())[:200]) from None
            raise
        if not all(map(_is_finite, results)):
            raise self._blame(
                [request for request, result in zip(requests, results, strict=True) if not _is_finite(result)]
            )
        return results

    def check_probe(self, result: ClassifyResult) -> None:
        """Raise ModelFailedError (503) if a result of ``probe`` differs from the scores at the start.

        Damaged weights or a broken device often give finite scores, which no other check detects.
        """
        if not _is_finite(result):
            raise ModelFailedError("the model's scores of a test image are not finite numbers")
        expected = self._probe_scores[list(result.class_ids)]
        if (difference := np.abs(np.array(result.scores) - expected).max()) > PROBE_TOLERANCE:
            raise ModelFailedError(
                f"the model's scores of a test image differ from those at its start by {difference:.2f}"
            )

    def _blame(self, requests: Requests) -> ModelFailedError | UnclassifiableImageError:
        """Return the error for a batch in which these requests got scores that are not finite numbers.

        The crops are bytes, so with sound weights only half precision can overflow, and does so each time. Such an
        image must not cost the replica: a client could end the service by sending it repeatedly.
        """
        try:
            self.check_probe(*self._run([self.probe]))
        except ModelFailedError as error:
            return error
        if any(_is_finite(result) for request in requests for result in self._run([request])):
            return ModelFailedError("the model gave an image scores that are not finite numbers, and then finite ones")
        return UnclassifiableImageError("the model's scores of this image are not finite numbers")

    def _measure_probe(self, image: np.ndarray) -> np.ndarray:
        """Return the scores of the probe by class, from the runtime that was compared with the reference."""
        best = self._head.best(pool(self._runtime(image[None])), self._head.classes)[:, 0]
        if not np.isfinite(best).all():
            raise EngineError("the model's scores of a test image are not finite numbers: its weights are broken")
        scores = np.empty(self._head.classes, np.float32)
        scores[best[2::2].astype(np.int64)] = best[1::2]
        return scores

    def _run(self, requests: Requests) -> list[ClassifyResult]:
        if self._gpu:
            return self._gpu(requests)
        features = self._runtime(np.stack([request.image for request in requests]))
        pooled = pool(features)
        best = self._head.best(pooled, self._head.k(requests))
        copies = copy_features(requests, features, pooled)
        if not (explained := self._head.explained(requests, best)):
            return self._head.results(requests, best, features=copies)
        maps = self._head.maps(features[[*explained]], [*explained.values()])
        return self._head.results(requests, best, maps, copies)


def _graph_runner(runtime: Any, head: Head, card: ModelCard) -> CudaGraphRunner:
    from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner  # imports torch, as this runtime did

    return CudaGraphRunner(runtime, head, card.transform.crop_px)


def _is_finite(result: ClassifyResult) -> bool:
    """Return whether all scores, the activation map and the features are finite numbers.

    The entropy is NaN if any logit of the image is NaN or infinite, and costs one float per image to check.
    """
    drawn, features = result.activation_map, result.features
    return (
        math.isfinite(result.entropy)
        and math.isfinite(sum(result.scores))
        and (drawn is None or (math.isfinite(drawn.logit) and bool(np.isfinite(drawn.values).all())))
        and (features is None or bool(np.isfinite(features).all()))
    )
