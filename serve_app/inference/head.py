"""What follows the backbone: average-pool → linear → softmax, and everything that an answer needs of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from serve_app.messages import ActivationMap, Classification, ClassifyItem


class Head:
    """The last layer, in float32, on the features' device.

    A batch leaves the device as one array, in the order of what is wanted most, so that a
    part of it from the front is enough.
    """

    def __init__(self, layer: nn.Linear, device: torch.device, temperature: float = 1.0) -> None:
        """Copy a model's last layer to a device.

        Args:
            layer: Left as it is.
            device: Where the features will be.
            temperature: Divides the layer's weights and bias, and so every logit and heat map.
        """
        weight, bias = (t.detach().float() / temperature for t in (layer.weight, layer.bias))
        self._weight, self._bias = weight.to(device), bias.to(device)
        self._host_bias: list[float] = bias.tolist()
        self.classes = layer.out_features

    def best(self, features: Tensor, k: int) -> Tensor:
        """Reduce a batch to the numbers of its answers.

        Returns:
            float32, (1 + 2k, N): the entropy; then the best score, its class id, the second
            best score, its class id, and so on.
        """
        logits = torch.addmm(self._bias, features.mean((2, 3), dtype=torch.float32), self._weight.T)
        logs = logits.log_softmax(1)
        scores = logs.exp()
        entropy = -(scores * logs).sum(1, keepdim=True)
        best = scores.topk(k)
        pairs = torch.stack((best.values, best.indices.float()), 2).flatten(1)
        return torch.cat((entropy, pairs), 1).T.contiguous()

    def maps(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Where the evidence for one class of each image lies.

        The head is average-pool → linear, so a map's mean plus the class's bias is the
        class's logit, exactly (tests/unit/inference/test_engine.py::test_map_adds_up).

        Returns:
            float32, (N, 1 + h * w): the logit, then the map.
        """
        features = features.float().flatten(2)
        rows = self._weight[class_ids]
        logits = self._bias[class_ids] + (rows * features.mean(2)).sum(1)
        values = torch.bmm(rows[:, None], features)[:, 0]
        return torch.cat((logits[:, None], values), 1)

    def k(self, items: Sequence[ClassifyItem]) -> int:
        """How many classes a batch's answers need: two for the margin."""
        return min(max(2, *(item.top_k for item in items)), self.classes)

    def explained(self, items: Sequence[ClassifyItem], best: np.ndarray) -> dict[int, int]:
        """The class to explain, by its item's place; for those that ask for it."""
        return {
            i: int(best[2, i]) if item.explain == "top" else item.explain
            for i, item in enumerate(items)
            if item.explain is not None
        }

    def answers(
        self, items: Sequence[ClassifyItem], best: np.ndarray, maps: Iterable[np.ndarray] = ()
    ) -> list[Classification]:
        """Put the answers together.

        Args:
            items: The batch.
            best: From ``best``, as an array.
            maps: From ``maps``, as an array: a row for each that is explained.
        """
        entropy, scores = best[0].tolist(), best[1::2].T.tolist()
        class_ids = best[2::2].T.astype(np.int64).tolist()
        explained = self.explained(items, best)
        drawn = {i: self._map(explained[i], row) for i, row in zip(explained, maps, strict=True)}
        return [
            Classification(
                class_ids=tuple(class_ids[i][: item.top_k]),
                scores=tuple(scores[i][: item.top_k]),
                margin=scores[i][0] - scores[i][1],
                entropy=entropy[i],
                activation_map=drawn.get(i),
            )
            for i, item in enumerate(items)
        ]

    def _map(self, class_id: int, row: np.ndarray) -> ActivationMap:
        side = math.isqrt(row.size - 1)  # crops are square, and so are their maps
        return ActivationMap(class_id, row[1:].reshape(side, side), self._host_bias[class_id], float(row[0]))
