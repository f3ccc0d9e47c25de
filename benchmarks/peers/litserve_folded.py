"""LitServe tuned: the folded model, uint8 crops and the quickest setting that a sweep found.

One worker whose torch has all cores. Swept on two cores with 16 clients and with one: README.md says
how to sweep again elsewhere.
"""

# No `from __future__ import annotations` here: LitServe hands the request's type hint to FastAPI as it is.

import os
from typing import Annotated, Any

import litserve
import numpy as np
import torch
from fastapi import Body

from benchmarks.peers import common

WORKERS = int(os.environ.get("PEER_WORKERS", 1))
THREADS = int(os.environ.get("PEER_THREADS", os.cpu_count() or 1))
BATCH = int(os.environ.get("PEER_BATCH", 8))
WAIT_S = float(os.environ.get("PEER_WAIT_MS", 0)) / 1000
API_SERVERS = int(os.environ.get("PEER_API_SERVERS", 1))
FAST_QUEUE = os.environ.get("PEER_FAST_QUEUE", "0") == "1"


class Classifier(litserve.LitAPI):
    """Decodes and classifies in the same worker."""

    def setup(self, device: str) -> None:
        """Load the model, once in each worker."""
        self.model = common.Folded(THREADS)

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> np.ndarray:
        """Decode the body."""
        return self.model.crop(request)

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Return the crops as they are; the model stacks them."""
        return inputs

    def predict(self, x: list[np.ndarray]) -> torch.Tensor:
        """Run the model."""
        return self.model.logits(x)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        """One row for each request."""
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        """The ten best classes."""
        return common.answer(output, self.model.card)


if __name__ == "__main__":
    port = common.port_from_command_line()
    server = litserve.LitServer(
        Classifier(max_batch_size=BATCH, batch_timeout=WAIT_S),
        accelerator="cpu",
        workers_per_device=WORKERS,
        fast_queue=FAST_QUEUE,
    )
    server.run(
        host="127.0.0.1", port=port, log_level="warning", generate_client_file=False, num_api_servers=API_SERVERS
    )
