"""The network's last layers on a GPU, in float32; what is on the host is in ``inference.head``."""

from __future__ import annotations

import torch
from torch import Tensor

from serve_app.inference.head import Head


def pool(features: Tensor) -> Tensor:
    """Average feature maps, (N, 512, h, w), to embeddings: float32, (N, 512)."""
    return features.mean((2, 3), dtype=torch.float32)


class CudaHead:
    """A head's layer on the device of the features.

    A batch leaves the device as one array whose first rows matter most, so a copy of the first rows is enough.

    Attributes:
        host: The head, which makes results of what leaves the device.
    """

    def __init__(self, head: Head, device: torch.device) -> None:
        self.host = head
        self._weight, self._bias = (torch.from_numpy(array).to(device) for array in (head.weight, head.bias))

    def best(self, pooled: Tensor, k: int) -> Tensor:
        """Reduce a batch of embeddings, (N, 512), to the ``k`` best classes: rows as ``Head.best`` returns them."""
        logits = torch.addmm(self._bias, pooled, self._weight.T)
        logs = logits.log_softmax(1)
        scores = logs.exp()
        entropy = -(scores * logs).sum(1, keepdim=True)
        best = scores.topk(k)
        pairs = torch.stack((best.values, best.indices.float()), 2).flatten(1)
        return torch.cat((entropy, pairs), 1).T.contiguous()

    def maps(self, features: Tensor, class_ids: Tensor) -> Tensor:
        """Compute the class activation map of one class per image, as ``Head.maps`` does; ``class_ids`` are int64."""
        features = features.float().flatten(2)
        rows = self._weight[class_ids]
        logits = self._bias[class_ids] + (rows * features.mean(2)).sum(1)
        values = torch.bmm(rows[:, None], features)[:, 0]
        return torch.cat((logits[:, None], values), 1)
