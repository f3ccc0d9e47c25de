"""Stage 3's runtimes: which one is taken, what is refused, and that none of them calls out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18

from serve_app.backbones import select
from serve_app.backbones.folding import fold
from serve_app.backbones.graph import to_onnx
from serve_app.classifier import ResNetEngine
from serve_app.config import EngineSpec, WeightsSpec
from serve_app.errors import EngineError
from serve_app.schemas import ImageTransform
from serve_app.weights import load_model

ROOT = Path(__file__).parents[2]
TRANSFORM = ImageTransform(resize_px=40, crop_px=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


class Fake:
    """A backbone of known speed and known error."""

    device = torch.device("cpu")

    def __init__(self, name: str, seconds: float, error: float = 0.0) -> None:
        self.name, self._seconds, self._error = name, seconds, error

    def __call__(self, pixels: np.ndarray) -> Tensor:
        ends = select.time.perf_counter() + self._seconds
        while select.time.perf_counter() < ends:
            pass
        return torch.ones(len(pixels), 512, 1, 1) + self._error


def missing() -> Fake:
    raise ImportError("no module named mnn")


@pytest.mark.parametrize(
    ("makers", "taken"),
    [
        ({"torch": lambda: Fake("torch", 0.02), "mnn": lambda: Fake("mnn", 0.001)}, "mnn"),
        ({"torch": lambda: Fake("torch", 0.001), "mnn": lambda: Fake("mnn", 0.02)}, "torch"),
        ({"torch": lambda: Fake("torch", 0.02), "mnn": lambda: Fake("mnn", 0.001, error=0.01)}, "torch"),
        ({"torch": lambda: Fake("torch", 0.02), "mnn": lambda: Fake("mnn", 0.001, error=float("nan"))}, "torch"),
        ({"torch": lambda: Fake("torch", 0.02), "mnn": missing}, "torch"),
    ],
    ids=("faster", "slower", "wrong", "not a number", "not installed"),
)
def test_auto_takes_the_fastest_that_agrees(makers: dict[str, Callable[[], Fake]], taken: str) -> None:
    assert select._fastest(makers, 8).name == taken


def test_a_missing_runtime_is_one_sentence(weights: WeightsSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="engine onnxruntime: not installed here"):
        ResNetEngine(*load_model(weights), EngineSpec(runtime="onnxruntime"))


def test_the_graph_is_valid_onnx() -> None:
    """Raw uint8 pixels in, any batch size, no training-only operation left."""
    torch.manual_seed(0)
    graph = to_onnx(fold(resnet18().eval()), TRANSFORM)
    onnx.checker.check_model(graph, full_check=True)
    (given,) = graph.graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    kinds = {node.op_type for node in graph.graph.node}
    assert kinds == {"Cast", "Transpose", "Sub", "Mul", "Conv", "Relu", "MaxPool", "Add"}


def test_unfolded_models_are_refused() -> None:
    with pytest.raises(ValueError, match="fold the batch norms first"):
        to_onnx(resnet18().eval(), TRANSFORM)


def test_no_runtime_calls_out() -> None:
    """Building and running every one opens no connection and starts no process; MNN's own tools would."""
    program = (
        "import sys\n"
        "from serve_app.classifier import ResNetEngine\n"
        "from serve_app.config import WeightsSpec, EngineSpec\n"
        "from serve_app.weights import load_model\n"
        "bad = ('socket.connect', 'socket.getaddrinfo', 'subprocess.Popen', 'os.system', 'os.posix_spawn', 'os.exec')\n"
        "sys.addaudithook(lambda event, args: print('CALLED', event, args) if event in bad else None)\n"
        "engine = ResNetEngine(*load_model(WeightsSpec(source='demo')), EngineSpec())\n"
        "engine.warm_up(2)\n"
        "print('RAN', engine.runtime, sorted(name for name in sys.modules if name.startswith('MNN.tools')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "CALLED" not in done.stdout
    assert "RAN" in done.stdout
    assert done.stdout.strip().endswith("[]")
