"""LitServe's documented image classifier: a LitAPI that decodes a batch in threads, with dynamic batching.

As documented: setup, batch, predict, unbatch and encode_response with ``max_batch_size`` and
``batch_timeout`` (lightning.ai/docs/litserve/features/batching and
lightning.ai/docs/litserve/speed-up-serving-by-200x, whose numbers for the batch these are), one
worker per core as LitServer's reference advises for CPUs
(lightning.ai/docs/litserve/api-reference/litserver). Its example sends base64 in JSON; here the
request's type hint (lightning.ai/docs/litserve/features/request-response-format) takes the raw body,
which costs less.
"""

# No `from __future__ import annotations` here: LitServe hands the request's type hint to FastAPI as it is.

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import litserve
import torch
from fastapi import Body

from benchmarks.peers import common


class Classifier(litserve.LitAPI):
    """torchvision's transform and eager model."""

    def setup(self, device: str) -> None:
        """Load the model, once in each worker."""
        model, self.card = common.load()
        self.model = model.to(device)
        self.transform = common.Transform(self.card)
        self.pool = ThreadPoolExecutor(os.cpu_count())

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> bytes:
        """The body is the image."""
        return request

    def batch(self, inputs: list[bytes]) -> torch.Tensor:
        """Decode the images of a batch side by side."""
        return torch.stack(list(self.pool.map(self.transform, inputs)))

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Run the model."""
        with torch.inference_mode():
            return self.model(x)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        """One row for each request."""
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        """The ten best classes."""
        return common.answer(output, self.card)


if __name__ == "__main__":
    port = common.port_from_command_line()
    api = Classifier(max_batch_size=16, batch_timeout=0.01)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=os.cpu_count())
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
