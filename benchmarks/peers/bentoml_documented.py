"""BentoML's documented image classifier: a service class with one batchable method.

As documented: ``@bentoml.api(batchable=True)`` on a list
(docs.bentoml.com/en/latest/get-started/adaptive-batching.html), pictures as PIL images from a form's
``images`` field, ``concurrency`` and ``timeout`` as in BentoML's own ResNet example
(github.com/bentoml/BentoResnet), started with ``bentoml serve``. A batchable method takes a list, so
the image comes in a form instead of as the body.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
import torch
from PIL.Image import Image

from benchmarks.peers import common
from benchmarks.weights import torchvision_transform


@bentoml.service(traffic={"timeout": 300, "concurrency": 256})
class Classifier:
    """torchvision's transform and eager model."""

    def __init__(self) -> None:
        """Load the model."""
        self.model, self.card = common.load()
        self.transform = torchvision_transform(self.card.transform)

    @bentoml.api(batchable=True)
    def predict(self, images: list[Image]) -> list[dict[str, Any]]:
        """Classify a batch."""
        batch = torch.stack([self.transform(image.convert("RGB")) for image in images])
        with torch.no_grad():
            logits = self.model(batch)
        return [common.answer(row, self.card) for row in logits]


if __name__ == "__main__":
    port = common.port_from_command_line()
    command = Path(sys.executable).with_name("bentoml")
    service = "benchmarks.peers.bentoml_documented:Classifier"
    os.execv(command, [str(command), "serve", service, "--host", "127.0.0.1", "--port", str(port)])
