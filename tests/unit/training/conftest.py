"""What the training tests share."""

from __future__ import annotations

import pytest

from serve_app.config import EngineConfig
from serve_app.inference.engine import ResNetEngine


@pytest.fixture
def torch_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classify with the torch runtime, because choosing the fastest runtime takes seconds for each engine."""
    config = EngineConfig(runtime="torch")
    monkeypatch.setattr(
        "serve_app.training.predict.ResNetEngine", lambda model, card: ResNetEngine(model, card, config)
    )
