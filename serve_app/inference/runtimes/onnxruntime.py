"""ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from serve_app.inference.runtimes.base import CPU
from serve_app.inference.runtimes.onnx_graph import FEATURES, PIXELS


class OnnxRuntime:
    """ONNX Runtime: blocked direct convolutions. For any number of threads at a time."""

    name, device, workers = "onnxruntime", CPU, 1

    def __init__(self, graph: bytes | Path, threads: int, settings: Mapping[str, str] | None = None) -> None:
        """Load a graph as backbones.graph or backbones.int8 writes it; settings are ONNX Runtime's own."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        for name, value in (settings or {}).items():
            options.add_session_config_entry(name, value)
        # A thread that spins while it waits takes the core from the stages that share it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = graph if isinstance(graph, bytes) else str(graph)
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """See Runtime."""
        return torch.from_numpy(self._session.run([FEATURES], {PIXELS: pixels})[0])
