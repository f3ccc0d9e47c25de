"""Ray Serve as its guides build it: three composed deployments, ``@serve.batch``, float32 tensors, default flags.

As documented: handles passed to constructors and calls chained without awaiting in between
(docs.ray.io/en/latest/serve/model_composition.html), ``@serve.batch(max_batch_size=8)``
(docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html), torchvision's transforms and eager
model on the raw body (docs.ray.io/en/latest/serve/tutorials/serve-ml-models.html). The model's
``max_ongoing_requests`` follows the warning that Serve logs for this batch size; all else is default.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

from benchmarks.peers import common

BATCH = 8
DEPLOYMENTS = 3  # each asks for one CPU


@serve.deployment
class Preprocessor:
    """Bytes to tensor."""

    def __init__(self, weights: str) -> None:
        """Read the sizes."""
        self.transform = common.Transform(common.load(weights)[1])

    def __call__(self, encoded: bytes) -> torch.Tensor:
        """Transform one image."""
        return self.transform(encoded)


@serve.deployment(max_ongoing_requests=BATCH)
class Model:
    """Tensors to classes."""

    def __init__(self, weights: str) -> None:
        """Load the model."""
        self.model, self.card = common.load(weights)

    @serve.batch(max_batch_size=BATCH)
    async def __call__(self, images: list[torch.Tensor]) -> list[dict[str, Any]]:
        """Classify a batch."""
        with torch.no_grad():
            logits = self.model(torch.stack(images))
        return [common.answer(row, self.card) for row in logits]


@serve.deployment
class Ingress:
    """HTTP."""

    def __init__(self, preprocessor: DeploymentHandle, model: DeploymentHandle) -> None:
        """Keep the handles."""
        self.preprocessor, self.model = preprocessor, model

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Classify the body."""
        tensor = self.preprocessor.remote(await request.body())
        return await self.model.remote(tensor)


def main() -> None:
    """Serve until a signal."""
    port = common.port_from_command_line()
    weights = os.environ[common.WEIGHTS]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A small machine has fewer CPUs than the default deployments ask for; they share them.
    ray.init(address="local", num_cpus=max(DEPLOYMENTS, os.cpu_count() or 1))
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(Ingress.bind(Preprocessor.bind(weights), Model.bind(weights)), route_prefix="/predict")
        signal.pause()
    except KeyboardInterrupt:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
