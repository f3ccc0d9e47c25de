"""The processes that share each training batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True)
class WorkerGroup:
    """This process's place among the workers of a training run; by default it is the only one.

    DistributedDataParallel does not fit here. It refuses the epochs that train the last layer only, because most
    parameters have no gradient then. It leaves each worker with other batch-norm statistics. With three workers a
    resumed run ended in other weights than an uninterrupted one, because its buckets are rebuilt after the first step.
    """

    rank: int = 0
    size: int = 1

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the group, in one message."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            torch.distributed.all_reduce(flat)
            flat /= self.size
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))
