"""Bare OpenVINO in FastAPI: our preprocessing, one uvicorn worker, a stream per core.

As documented: the model from PyTorch by ``convert_model``, the hint for throughput, a request object per thread
(docs.openvino.ai: convert-model-pytorch, high-level-performance-hints, openvino-runtime inference requests). Blocking
work runs in the thread pool that plain ``def`` functions get (fastapi.tiangolo.com/async). In float32, as all others:
on a CPU with AMX, OpenVINO's own default is bfloat16, which ``PEER_PRECISION=bf16`` measures.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import openvino
import torch
import uvicorn
from fastapi import Body, FastAPI

from benchmarks.peers import common

PRECISION = os.environ.get("PEER_PRECISION", "f32")


class Model:
    """The folded model, compiled; mean and deviation are part of its graph."""

    def __init__(self) -> None:
        """Load, convert and compile the weights."""
        self.folded = common.Folded(1)
        side = self.folded.card.transform.crop_px
        network = openvino.convert_model(self.folded, example_input=torch.zeros(1, side, side, 3, dtype=torch.uint8))
        options = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": PRECISION}
        self._compiled = openvino.Core().compile_model(network, "CPU", options)
        self._local = threading.local()

    def __call__(self, encoded: bytes) -> dict[str, Any]:
        """Decode and classify one image."""
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        logits = self._local.request.infer([self.folded.crop(encoded)[None]])[0]
        return common.answer(torch.from_numpy(logits[0]), self.folded.card)


models: list[Model] = []


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Load the model before the first request."""
    models.append(Model())
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(encoded: Annotated[bytes, Body(media_type="image/jpeg")]) -> dict[str, Any]:
    """Classify the body."""
    return models[0](encoded)


if __name__ == "__main__":
    uvicorn.run(app, port=common.port_from_command_line(), log_level="warning")
