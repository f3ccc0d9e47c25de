"""Stage 3/3 · uint8 batch -> top-k classes and, on request, class activation maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.models import ResNet

from serve_app.backbones.select import build
from serve_app.config import EngineSpec
from serve_app.schemas import ActivationMap, Classification, ClassifyItem, ModelCard


class ResNetEngine:
    """A ResNet-18 in the fastest form that this machine can run, with exact answers."""

    def __init__(self, model: ResNet, card: ModelCard, spec: EngineSpec | None = None, threads: int = 1) -> None:
        """Prepare a model; it is changed in place.

        Args:
            model: In eval mode.
            card: The model's transform.
            spec: Runtime and precision; by default the fastest that is exact.
            threads: CPU threads that one batch may use.

        Raises:
            EngineError: The runtime cannot be had here.
        """
        torch.set_num_threads(threads)
        self.crop_px = card.transform.crop_px
        weight, bias = model.fc.weight.detach(), model.fc.bias.detach()
        self._backbone = build(model, card, spec or EngineSpec(), threads)
        self._weight, self._bias = weight.to(self._backbone.device), bias.to(self._backbone.device)

    @property
    def runtime(self) -> str:
        """What runs the model."""
        return self._backbone.name

    def warm_up(self, batch: int) -> None:
        """Pay for lazy initialisation before the first request does."""
        blank = np.zeros((self.crop_px, self.crop_px, 3), np.uint8)
        for size in {1, batch}:
            self.classify([ClassifyItem(blank, 1, "top")] * size)

    @torch.inference_mode()
    def classify(self, items: Sequence[ClassifyItem]) -> list[Classification]:
        """Classify a batch; results keep its order.

        A class activation map costs one product of the last feature map with one row of
        the last layer: the head is average-pool -> linear, so the map's mean plus the
        bias is the logit, exactly (tests/unit/test_classifier.py::test_map_adds_up).
        """
        features = self._backbone(np.stack([item.pixels for item in items]))
        logits = torch.addmm(self._bias, features.mean((2, 3)), self._weight.T)
        probabilities = logits.softmax(1)
        entropy = torch.special.entr(probabilities).sum(1).tolist()
        k = min(max(2, *(item.top_k for item in items)), probabilities.shape[1])
        best = probabilities.topk(k)
        results = []
        for i, (item, scores, ids) in enumerate(zip(items, best.values.tolist(), best.indices.tolist(), strict=True)):
            explained = ids[0] if item.explain == "top" else item.explain
            results.append(
                Classification(
                    class_ids=tuple(ids[: item.top_k]),
                    scores=tuple(scores[: item.top_k]),
                    margin=scores[0] - scores[1],
                    entropy=entropy[i],
                    activation_map=None if explained is None else self._map(features[i], logits[i], explained),
                )
            )
        return results

    def _map(self, features: Tensor, logits: Tensor, class_id: int) -> ActivationMap:
        values = torch.einsum("c,chw->hw", self._weight[class_id], features)
        return ActivationMap(class_id, values.cpu().numpy(), self._bias[class_id].item(), logits[class_id].item())
