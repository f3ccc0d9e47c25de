"""Bare FastAPI: one endpoint, torchvision's transform and eager model, one uvicorn worker.

As documented: the raw body through ``Request`` (fastapi.tiangolo.com/advanced/using-request-directly),
blocking work in the thread pool that plain ``def`` functions get (fastapi.tiangolo.com/async), the
model loaded once (fastapi.tiangolo.com/advanced/events), torchvision's inference transforms
(docs.pytorch.org/vision/stable/models.html).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import Body, FastAPI

from benchmarks.peers import common

state: dict[str, Any] = {}


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Load the model before the first request."""
    model, card = common.load()
    state.update(model=model, card=card, transform=common.Transform(card))
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(encoded: Annotated[bytes, Body(media_type="image/jpeg")]) -> dict[str, Any]:
    """Classify the body."""
    batch = state["transform"](encoded).unsqueeze(0)
    with torch.inference_mode():
        logits = state["model"](batch)
    return common.answer(logits[0], state["card"])


if __name__ == "__main__":
    uvicorn.run(app, port=common.port_from_command_line(), log_level="warning")
