"""What holds for every CPU runtime: concurrent batches keep their results, and nothing calls out."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torchvision.models import resnet18

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.network import fold
from serve_app.inference.runtimes.onnx_graph import to_onnx
from serve_app.inference.torch_model import to_arrays
from serve_app.inference.weights import load_weights
from serve_app.messages import ClassifyRequest
from serve_app.model_card import ImageTransform
from tests.support.paths import ROOT
from tests.support.runtimes import CPU_RUNTIMES

TRANSFORM = ImageTransform(resize_px=40, crop_px=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
def test_concurrent_batches_get_their_own_results(weights: WeightsConfig, runtime: Any) -> None:
    """Batches of changing size from three threads on three cores get the results that each gets alone."""
    engine = ResNetEngine(*load_weights(weights), EngineConfig(runtime=runtime), cores=3)
    random = np.random.default_rng(0)
    batches = [
        [ClassifyRequest(random.integers(0, 256, (96, 96, 3), np.uint8), 3) for _ in range(size)]
        for size in (1, 3, 2, 1, 4, 2) * 3
    ]
    sequential = [engine.classify(batch) for batch in batches]
    with ThreadPoolExecutor(engine.workers) as threads:
        concurrent = list(threads.map(engine.classify, batches))
    for expected, actual in zip(sequential, concurrent, strict=True):
        assert [result.class_ids for result in actual] == [result.class_ids for result in expected]
        np.testing.assert_allclose([r.scores for r in actual], [r.scores for r in expected], atol=1e-4)


def test_the_graph_is_valid_onnx() -> None:
    """The graph takes raw uint8 pixels in batches of any size and has no operation of training."""
    graph = to_onnx(fold(to_arrays(resnet18().eval())), TRANSFORM)
    onnx.checker.check_model(graph, full_check=True)
    (pixels,) = graph.graph.input
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    op_types = {node.op_type for node in graph.graph.node}
    assert op_types == {"Cast", "Transpose", "Sub", "Mul", "Conv", "Relu", "MaxPool", "Add"}


# Python imports sitecustomize at its start, in each process. This one logs every connection and every new process.
AUDIT_HOOK = """import os, sys
LOGGED = ('socket.connect', 'socket.getaddrinfo', 'subprocess.Popen', 'os.system', 'os.posix_spawn', 'os.exec')
def hook(event, args):
    known = 'ldconfig', 'serve_app.inference.runtimes.timing'
    started = event == 'subprocess.Popen' and any(str(name).endswith(known) for name in (args[0], *args[1][:3]))
    if event in LOGGED and not started:
        with open(os.environ['CALLS'], 'a') as calls:
            print(event, args, file=calls)
sys.addaudithook(hook)
"""


def test_no_runtime_calls_out(tmp_path: Path) -> None:
    """Building and running every runtime opens no connection and starts no process.

    Two are allowed: ldconfig, by which libraries are located on import, and the one that times the runtimes, for which
    the same holds.
    """
    program = (
        "from serve_app.inference.engine import ResNetEngine\n"
        "from serve_app.config import WeightsConfig, EngineConfig\n"
        "from serve_app.inference.weights import load_weights\n"
        "engine = ResNetEngine(*load_weights(WeightsConfig(source='demo')), EngineConfig())\n"
        "engine.warm_up(2)\n"
        "ResNetEngine(*load_weights(WeightsConfig(source='demo')), EngineConfig(precision='int8')).warm_up(2)\n"
        "print('RAN')\n"
    )
    (tmp_path / "sitecustomize.py").write_text(AUDIT_HOOK)
    (tmp_path / "calls").touch()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "CALLS": str(tmp_path / "calls")}
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (tmp_path / "calls").read_text() == ""
    assert process.stdout.strip() == "RAN"
