"""mosec tuned, the strongest opponent: the folded model, uint8 crops and the quickest setting of a sweep.

Decoders beside one worker whose torch has all cores; or (``PEER_STAGES=1``) one stage that decodes and
classifies in the same process. Swept on two cores with 16 clients and with one: README.md says how to
sweep again elsewhere.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from mosec import Server, Worker

from benchmarks.peers import common

STAGES = int(os.environ.get("PEER_STAGES", 2))
CORES = os.cpu_count() or 1
DECODERS = int(os.environ.get("PEER_DECODERS", CORES))
WORKERS = int(os.environ.get("PEER_WORKERS", 1))
THREADS = int(os.environ.get("PEER_THREADS", CORES))
BATCH = int(os.environ.get("PEER_BATCH", 8))
WAIT_MS = int(os.environ.get("PEER_WAIT_MS", 1))


class Decode(Worker):
    """Bytes to a uint8 crop, sent on as it lies in memory."""

    def __init__(self) -> None:
        """Read the sizes."""
        super().__init__()
        self.crop = common.Folded(1).crop

    def deserialize(self, data: bytes) -> bytes:
        """The body is the image."""
        return data

    def forward(self, data: bytes) -> np.ndarray:
        """Decode one image."""
        return self.crop(data)

    def serialize_ipc(self, data: np.ndarray) -> bytes:
        """Only the pixels."""
        return data.tobytes()


class Classify(Worker):
    """Crops to classes, in batches."""

    def __init__(self) -> None:
        """Load the model and run it once at each size."""
        super().__init__()
        self.model = common.Folded(THREADS)
        self.side = self.model.card.transform.crop_px
        for size in range(1, BATCH + 1):
            self.model.logits([np.zeros((self.side, self.side, 3), np.uint8)] * size)

    def deserialize_ipc(self, data: bytes) -> np.ndarray:
        """The pixels of one crop."""
        return np.frombuffer(data, np.uint8).reshape(self.side, self.side, 3)

    def forward(self, data: Any) -> Any:
        """Classify a batch, or the one image that a batch of at most one is."""
        rows = self.model.logits(data if BATCH > 1 else [data])
        answers = [common.answer(row, self.model.card) for row in rows]
        return answers if BATCH > 1 else answers[0]


class DecodeAndClassify(Classify):
    """Both in one process."""

    def deserialize(self, data: bytes) -> np.ndarray:
        """The body is the image."""
        return self.model.crop(data)


if __name__ == "__main__":
    os.environ["MOSEC_PORT"] = str(common.port_from_command_line())
    server = Server()
    if STAGES == 1:
        server.append_worker(DecodeAndClassify, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    else:
        server.append_worker(Decode, num=DECODERS)
        server.append_worker(Classify, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    server.run()
