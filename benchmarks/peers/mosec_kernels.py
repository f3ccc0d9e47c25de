"""mosec with our decoder and our engine: what mosec's serving costs, beside ours, when both run the same kernels.

One stage that decodes and classifies, in a process per core with a thread each, as the row ``ceiling`` does it.
``PEER_WORKERS``, ``PEER_BATCH`` and ``PEER_WAIT_MS`` change that for a sweep.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from mosec import Server, Worker

from benchmarks.ceiling import stages
from benchmarks.peers import common

WORKERS = int(os.environ.get("PEER_WORKERS", os.cpu_count() or 1))
BATCH = int(os.environ.get("PEER_BATCH", 8))
WAIT_MS = int(os.environ.get("PEER_WAIT_MS", 1))


class DecodeAndClassify(Worker):
    """Bytes to classes, in batches."""

    def __init__(self) -> None:
        """Load the model and warm up every batch size."""
        super().__init__()
        torch.set_num_threads(1)
        self._decode, self._classify = stages(common.weights_file(), BATCH)

    def deserialize(self, data: bytes) -> np.ndarray:
        """Decode the body."""
        return self._decode(data)

    def forward(self, data: list[np.ndarray]) -> list[dict[str, Any]]:
        """Classify a batch."""
        return [common.answer_of(result) for result in self._classify(data)]


if __name__ == "__main__":
    os.environ["MOSEC_PORT"] = str(common.port_from_command_line())
    server = Server()
    server.append_worker(DecodeAndClassify, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    server.run()
