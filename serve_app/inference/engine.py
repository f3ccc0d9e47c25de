"""Stage 3/3 · uint8 batch -> top-k classes and, on request, class activation maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torchvision.models import ResNet

from serve_app.config import EngineConfig
from serve_app.errors import EngineError
from serve_app.inference.head import Head
from serve_app.inference.runtimes.cuda.graphs import CudaGraphRunner
from serve_app.inference.runtimes.cuda.runtime import CudaRuntime
from serve_app.inference.runtimes.select import TIMED_BATCH_SIZES, select_runtime
from serve_app.messages import Classification, ClassifyItem
from serve_app.model_card import ModelCard


class ResNetEngine:
    """A ResNet-18 in the fastest form that this machine can run."""

    def __init__(
        self,
        model: ResNet,
        card: ModelCard,
        spec: EngineConfig | None = None,
        cores: int = 1,
        serving: bool = False,
        batches: Sequence[int] = TIMED_BATCH_SIZES,
    ) -> None:
        """Prepare a model; it is changed in place.

        Args:
            model: In eval mode.
            card: The model's transform and temperature.
            spec: Runtime and precision; by default fp16 on a GPU, else the fastest that is exact.
            cores: CPU cores that its batches share.
            serving: Another engine of this process answers requests meanwhile, and is to be disturbed little.
            batches: Sizes for which the runtime is to be the fastest.

        Raises:
            EngineError: The runtime cannot be had here.
        """
        self.crop_px = card.transform.crop_px
        self._backbone = select_runtime(model, card, spec or EngineConfig(), cores, serving, batches)
        self._head = Head(model.fc, self._backbone.device, card.temperature)
        self._gpu: CudaGraphRunner | None = None
        if isinstance(self._backbone, CudaRuntime):
            self._gpu = CudaGraphRunner(self._backbone, self._head, self.crop_px)
        self._warm = 0  # images in the largest batch that was tried

    @property
    def workers(self) -> int:
        """How many batches may be in ``classify`` at a time, each in a thread of its own."""
        return self._backbone.workers

    @property
    def workers_are_cores(self) -> bool:
        """Whether each lane has a core of its own, instead of all sharing a GPU."""
        return self._gpu is None

    @property
    def runtime(self) -> str:
        """What runs the model."""
        return self._backbone.name

    def warm_up(self, batch: int) -> None:
        """Pay for lazy initialization before the first request does; again only for larger batches.

        Raises:
            EngineError: The model answers, but not with numbers.
        """
        if batch <= self._warm:
            return
        if self._gpu:
            self._gpu.warm_up(batch)
        blank = np.zeros((self.crop_px, self.crop_px, 3), np.uint8)
        sizes = [size for size in (1, batch) for _ in range(self.workers)]
        with ThreadPoolExecutor(self.workers) as threads:
            answers = list(threads.map(lambda size: self.classify([ClassifyItem(blank, 1, "top")] * size), sizes))
        if not all(math.isfinite(one.scores[0]) for batch_of in answers for one in batch_of):
            raise EngineError("the model answers a blank image with scores that are not finite: its weights are broken")
        self._warm = batch

    @torch.inference_mode()
    def classify(self, items: Sequence[ClassifyItem]) -> list[Classification]:
        """Classify a batch; results keep its order."""
        if self._gpu:
            return self._gpu(items)
        features = self._backbone(np.stack([item.pixels for item in items]))
        best = self._head.best(features, self._head.k(items)).numpy()
        if not (explained := self._head.explained(items, best)):
            return self._head.answers(items, best)
        maps = self._head.maps(features[[*explained]], torch.tensor([*explained.values()]))
        return self._head.answers(items, best, maps.numpy())
