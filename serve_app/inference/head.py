"""The network's last layers: average pooling, linear layer, softmax; and the results made from them.

The sums are taken in float64 and rounded to float32 once, so an image's scores do not depend on the batch that it is
in or on a library's order of additions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from serve_app.inference.network import Arrays
from serve_app.messages import ActivationMap, ClassifyRequest, ClassifyResult
from serve_app.model_card import ModelCard

POOLED_TOGETHER = 16  # pixels
Requests = Sequence[ClassifyRequest[np.ndarray]]


def pool(features: np.ndarray) -> np.ndarray:
    """Average feature maps, (N, 512, h, w), to embeddings: float32, (N, 512).

    Pixels are added in PyTorch's order for channels-last maps, 16 at a time and then these sums, so that the embeddings
    of earlier versions, from which heads were taught, keep every bit.
    """
    pixels = features.transpose(2, 3, 0, 1).reshape(-1, *features.shape[:2])
    whole = len(pixels) - len(pixels) % POOLED_TOGETHER
    total = pixels[whole:].sum(0)
    if whole:
        total += pixels[:whole].reshape(-1, POOLED_TOGETHER, *pixels.shape[1:]).sum(1).sum(0)
    mean: np.ndarray = total / np.float32(len(pixels))
    return mean


def copy_features(
    requests: Requests, features: np.ndarray | Mapping[int, np.ndarray], pooled: np.ndarray
) -> dict[int, np.ndarray]:
    """Copy what the requests of a batch ask for, so that no result holds or shares the batch's memory.

    Args:
        requests: Those of the batch.
        features: The last feature maps by place in the batch, (512, h, w) each; read only for requests of "map".
        pooled: Their embeddings, float32, (at least N, 512); read only for requests of "pooled".

    Returns:
        float32 by place in the batch, for the requests that ask: (512,) for "pooled", (512, h, w) for "map".
    """
    return {
        i: np.array(pooled[i] if request.features == "pooled" else features[i], np.float32, order="C")
        for i, request in enumerate(requests)
        if request.features is not None
    }


class Head:
    """A copy of a model's last layer.

    The card's temperature divides weight and bias, and with them every logit and activation map.

    Attributes:
        weight: Divided by the temperature; float32, (C, 512).
        bias: Divided by the temperature; float32, (C,).
        classes: Number of classes.
    """

    def __init__(self, arrays: Arrays, card: ModelCard) -> None:
        self.weight, self.bias = (arrays[name] / np.float32(card.temperature) for name in ("fc.weight", "fc.bias"))
        self.classes = len(self.bias)
        self._exact_weight, self._exact_bias = self.weight.T.astype(np.float64), self.bias.astype(np.float64)
        self._card, self._model = card, card.ref

    def best(self, pooled: np.ndarray, k: int) -> np.ndarray:
        """Reduce a batch of embeddings, (N, 512), to the ``k`` best classes.

        Returns:
            float32, (1 + 2k, N). Row 0 is the entropy; then best score, its class id, second best score, its class
            id, and so on.
        """
        with np.errstate(all="ignore"):  # scores of broken weights are no numbers, which the engine detects
            logits = pooled.astype(np.float64) @ self._exact_weight + self._exact_bias
            logits -= logits.max(1, keepdims=True)
            logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            scores = np.exp(logs)
            entropy = -(scores * logs).sum(1)
        ids = np.argsort(-scores, 1, kind="stable")[:, :k]
        best = np.empty((1 + 2 * k, len(pooled)), np.float32)
        best[0], best[1::2], best[2::2] = entropy, np.take_along_axis(scores, ids, 1).T, ids.T
        return best

    def maps(self, features: np.ndarray, class_ids: Sequence[int]) -> np.ndarray:
        """Compute the class activation map of one class per image.

        The head is average pooling followed by a linear layer, so the mean of a map plus the class's bias equals the
        class's logit exactly (tests/unit/inference/test_engine.py::test_map_adds_up).

        Args:
            features: (N, 512, h, w).
            class_ids: Of N classes.

        Returns:
            float32, (N, 1 + h * w): the logit, then the map.
        """
        ids = [*class_ids]
        with np.errstate(all="ignore"):
            values = np.einsum("nc,nchw->nhw", self._exact_weight.T[ids], features).reshape(len(ids), -1)
            logits = self._exact_bias[ids] + values.mean(1)
        return np.concatenate((logits[:, None], values), 1).astype(np.float32)

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
        return ActivationMap(class_id, self._card.labels[class_id], values, float(self.bias[class_id]), float(row[0]))
