"""The network's last layers: average pooling, linear layer, softmax; and the results made from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from serve_app.messages import ActivationMap, ClassifyRequest, ClassifyResult
from serve_app.model_card import ModelCard

Requests = Sequence[ClassifyRequest[np.ndarray]]


def pool(features: Tensor) -> Tensor:
    """Average feature maps, (N, 512, h, w), to embeddings: float32, (N, 512)."""
    return features.mean((2, 3), dtype=torch.float32)


def copy_features(requests: Requests, features: Tensor, pooled: np.ndarray) -> dict[int, np.ndarray]:
    """Copy what the requests of a batch ask for, so that no result holds or shares the batch's memory.

    Args:
        requests: Those of the batch.
        features: The last feature maps, (at least N, 512, h, w), on any device.
        pooled: Their embeddings, float32, (at least N, 512); read only for requests of "pooled".

    Returns:
        float32 by place in the batch, for the requests that ask: (512,) for "pooled", (512, h, w) for "map".
    """
    return {
        i: pooled[i].copy()
        if request.features == "pooled"
        # .cpu() of one image allocates nothing on a GPU; the order in memory is the runtime's, often channels last.
        else np.array(features[i].cpu().float().numpy(), order="C")
        for i, request in enumerate(requests)
        if request.features is not None
    }


class Head:
    """A copy of a model's last layer in float32, on the device of the features.

    The card's temperature divides weight and bias, and with them every logit and activation map. A batch leaves the
    device as one array whose first rows matter most, so a copy of the first rows is enough.
    """

    def __init__(self, layer: nn.Linear, device: torch.device, card: ModelCard) -> None:
        weight, bias = (t.detach().float() / card.temperature for t in (layer.weight, layer.bias))
        self._weight, self._bias = weight.to(device), bias.to(device)
        self._host_bias: list[float] = bias.tolist()
        self._card, self._model = card, card.ref
        self.classes = layer.out_features

    def best(self, pooled: Tensor, k: int) -> Tensor:
        """Reduce a batch of embeddings, (N, 512), to the ``k`` best classes.

        Returns:
            float32, (1 + 2k, N). Row 0 is the entropy; then best score, its class id, second best score, its class
            id, and so on.
        """
        logits = torch.addmm(self._bias, pooled, self._weight.T)
        logs = logits.log_softmax(1)
        scores = logs.exp()
        entropy = -(scores * logs).sum(1, keepdim=True)
        best = scores.topk(k)
        pairs = torch.stack((best.values, best.indices.float()), 2).flatten(1)
        return torch.cat((entropy, pairs), 1).T.contiguous()

    def maps(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Compute the class activation map of one class per image.

        The head is average pooling followed by a linear layer, so the mean of a map plus the class's bias equals the
        class's logit exactly (tests/unit/inference/test_engine.py::test_map_adds_up).

        Args:
            features: (N, 512, h, w).
            class_ids: int64, (N,).

        Returns:
            float32, (N, 1 + h * w): the logit, then the map.
        """
        features = features.float().flatten(2)
        rows = self._weight[class_ids]
        logits = self._bias[class_ids] + (rows * features.mean(2)).sum(1)
        values = torch.bmm(rows[:, None], features)[:, 0]
        return torch.cat((logits[:, None], values), 1)

    def k(self, requests: Requests) -> int:
        """Return how many classes the results of a batch need; at least two, for the margin."""
        return min(max(2, *(request.top_k for request in requests)), self.classes)

    def explained(self, requests: Requests, best: np.ndarray) -> dict[int, int]:
        """Return the class to explain for each request that asks for an activation map, by its place in the batch."""
        return {
            i: int(best[2, i]) if request.explain == "top" else request.explain
            for i, request in enumerate(requests)
            if request.explain is not None
        }

    def results(
        self,
        requests: Requests,
        best: np.ndarray,
        maps: Iterable[np.ndarray] = (),
        features: Mapping[int, np.ndarray] | None = None,
    ) -> list[ClassifyResult]:
        """Build the results of a batch.

        Args:
            requests: Those of the batch.
            best: What ``best`` returned.
            maps: What ``maps`` returned, for the explained requests.
            features: What ``copy_features`` returned.
        """
        features = features or {}
        entropy, scores = best[0].tolist(), best[1::2].T.tolist()
        class_ids = best[2::2].T.astype(np.int64).tolist()
        explained = self.explained(requests, best)
        drawn = {i: self._map(explained[i], row) for i, row in zip(explained, maps, strict=True)}
        labels = self._card.labels
        return [
            ClassifyResult(
                class_ids=(ids := tuple(class_ids[i][: request.top_k])),
                labels=tuple([labels[class_id] for class_id in ids]),
                scores=tuple(scores[i][: request.top_k]),
                margin=scores[i][0] - scores[i][1],
                entropy=entropy[i],
                model=self._model,
                abstain_below=self._card.abstain_below,
                activation_map=drawn.get(i),
                features=features.get(i),
                batch_size=len(requests),
            )
            for i, request in enumerate(requests)
        ]

    def _map(self, class_id: int, row: np.ndarray) -> ActivationMap:
        side = math.isqrt(row.size - 1)  # crops are square, so maps are square
        values = row[1:].reshape(side, side)
        return ActivationMap(class_id, self._card.labels[class_id], values, self._host_bias[class_id], float(row[0]))
