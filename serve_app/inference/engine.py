"""A ResNet-18 ready to run: a batch of crops in, classes and activation maps out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torchvision.models import ResNet

from serve_app.config import EngineConfig
from serve_app.errors import EngineError, InvalidParameterError
from serve_app.inference.head import Head, Requests
from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner
from serve_app.inference.runtimes.cuda.runtime import CudaRuntime
from serve_app.inference.runtimes.select import TIMED_BATCH_SIZES, select_runtime
from serve_app.messages import ClassifyRequest, ClassifyResult
from serve_app.model_card import ModelCard


class ResNetEngine:
    """Runs one model on the runtime that the settings name, or on the fastest one.

    Args:
        model: In eval mode; it is changed in place.
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

    Raises:
        EngineError: The runtime cannot run here.
    """

    def __init__(
        self,
        model: ResNet,
        card: ModelCard,
        config: EngineConfig | None = None,
        cores: int = 1,
        serving: bool = False,
        batches: Sequence[int] = TIMED_BATCH_SIZES,
    ) -> None:
        self.card = card
        self._runtime = runtime = select_runtime(model, card, config or EngineConfig(), cores, serving, batches)
        self._head = Head(model.fc, runtime.device, card)
        self._gpu: CudaGraphRunner | None = None
        if isinstance(runtime, CudaRuntime):
            self._gpu = CudaGraphRunner(runtime, self._head, card.transform.crop_px)
        self.runtime, self.workers, self.workers_are_cores = runtime.name, runtime.workers, self._gpu is None
        self._warm_batch = 0  # largest batch that has been run

    def warm_up(self, batch: int) -> None:
        """Run batches of one and of ``batch`` images, so that no request pays for lazy initialization.

        Raises:
            EngineError: The model's scores are not finite numbers.
        """
        if batch <= self._warm_batch:
            return
        if self._gpu:
            self._gpu.warm_up(batch)
        crop_px = self.card.transform.crop_px
        blank = ClassifyRequest(np.zeros((crop_px, crop_px, 3), np.uint8), 1, "top")
        sizes = [size for size in (1, batch) for _ in range(self.workers)]
        with ThreadPoolExecutor(self.workers) as threads:
            batches = list(threads.map(lambda size: self.classify([blank] * size), sizes))
        if not all(math.isfinite(result.scores[0]) for results in batches for result in results):
            raise EngineError("the model's scores for a blank image are not finite numbers: its weights are broken")
        self._warm_batch = batch

    @torch.inference_mode()
    def classify(self, requests: Requests) -> list[ClassifyResult]:
        """Classify a batch of crops; return one result per request, in the same order.

        Raises:
            InvalidParameterError: A request explains a class that the model does not have (422).
        """
        for request in requests:
            if isinstance(request.explain, int) and not 0 <= request.explain < self._head.classes:
                raise InvalidParameterError(
                    f"explain_class: {request.explain} is not a class id; the largest is {self._head.classes - 1}"
                )
        if self._gpu:
            return self._gpu(requests)
        features = self._runtime(np.stack([request.image for request in requests]))
        best = self._head.best(features, self._head.k(requests)).numpy()
        if not (explained := self._head.explained(requests, best)):
            return self._head.results(requests, best)
        maps = self._head.maps(features[[*explained]], torch.tensor([*explained.values()]))
        return self._head.results(requests, best, maps.numpy())
