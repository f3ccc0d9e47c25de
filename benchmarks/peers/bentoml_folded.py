"""BentoML with the folded model and our preprocessing, in batches.

As bentoml_documented.py, except that files come as paths (docs.bentoml.com: io-types), which our decoder reads.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import bentoml

from benchmarks.peers import common

THREADS = int(os.environ.get("PEER_THREADS", os.cpu_count() or 1))
BATCH = int(os.environ.get("PEER_BATCH", 8))


@bentoml.service(traffic={"timeout": 300, "concurrency": 256})
class Classifier:
    """Our decoder and the folded model."""

    def __init__(self) -> None:
        """Load the model."""
        self.model = common.Folded(THREADS)

    @bentoml.api(batchable=True, max_batch_size=BATCH)
    def predict(self, images: list[Path]) -> list[dict[str, Any]]:
        """Classify a batch."""
        rows = self.model.logits([self.model.crop(image.read_bytes()) for image in images])
        return [common.answer(row, self.model.card) for row in rows]


if __name__ == "__main__":
    port = common.port_from_command_line()
    command = Path(sys.executable).with_name("bentoml")
    service = "benchmarks.peers.bentoml_folded:Classifier"
    os.execv(command, [str(command), "serve", service, "--host", "127.0.0.1", "--port", str(port)])
