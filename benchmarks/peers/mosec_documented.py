"""mosec's own ResNet example: four preprocessing workers, two that infer in batches of 16, one that answers.

As documented: the three stages, their numbers and the warm-up example of "Computer Vision" on
mosecorg.github.io/mosec/examples/pytorch.html; the raw body through ``deserialize`` as in "Sentiment
Analysis" on the same page, which costs less than the example's msgpack. torchvision's own transform
stands in for the example's, which squeezes the picture.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from mosec import Server, Worker

from benchmarks.peers import common

BATCH = 16


class Preprocess(Worker):
    """Bytes to float32."""

    def __init__(self) -> None:
        """Read the sizes."""
        super().__init__()
        self.transform = common.Transform(common.load()[1])

    def deserialize(self, data: bytes) -> bytes:
        """The body is the image."""
        return data

    def forward(self, data: bytes) -> np.ndarray:
        """Transform one image."""
        return self.transform(data).numpy()


class Inference(Worker):
    """float32 to scores."""

    def __init__(self) -> None:
        """Load the model."""
        super().__init__()
        self.model, _ = common.load()
        self.example = [np.zeros((3, 224, 224), np.float32)] * BATCH

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        """Classify a batch."""
        with torch.no_grad():
            logits = self.model(torch.stack([torch.tensor(image) for image in data]))
        return list(logits.numpy())


class Postprocess(Worker):
    """Scores to classes."""

    def __init__(self) -> None:
        """Read the labels."""
        super().__init__()
        _, self.card = common.load()

    def forward(self, data: np.ndarray) -> dict[str, Any]:
        """The ten best classes; JSON is what mosec answers by default."""
        return common.answer(torch.from_numpy(data), self.card)


if __name__ == "__main__":
    os.environ["MOSEC_PORT"] = str(common.port_from_command_line())
    server = Server()
    server.append_worker(Preprocess, num=4)
    server.append_worker(Inference, num=2, max_batch_size=BATCH)
    server.append_worker(Postprocess, num=1)
    server.run()
