"""What the training tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from serve_app.config import EngineConfig
from serve_app.inference.engine import ResNetEngine


@pytest.fixture
def torch_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classify with the torch runtime, because choosing the fastest runtime takes seconds for each engine."""
    config = EngineConfig(runtime="torch")
    monkeypatch.setattr(
        "serve_app.training.predict.ResNetEngine", lambda arrays, card: ResNetEngine(arrays, card, config)
    )


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under torchvision's names, in half precision, without the last layer."""
    torch.manual_seed(0)
    state = {k: v for k, v in resnet18().state_dict().items() if not k.startswith("fc.")}
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    return path


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other are slower than one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)
