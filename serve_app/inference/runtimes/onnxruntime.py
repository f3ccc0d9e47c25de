"""ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from serve_app.inference.runtimes.onnx_graph import FEATURES, PIXELS


class OnnxRuntime:
    """ONNX Runtime: direct convolutions in a blocked layout. Any number of threads may call it at the same time.

    Args:
        graph: As ``onnx_graph.to_onnx`` or ``int8.quantize`` writes it.
        threads: Threads that work on one batch.
        session_config: Entries for ONNX Runtime's ``SessionOptions.add_session_config_entry``.

    Raises:
        ImportError: ONNX Runtime is not installed.
    """

    name, workers = "onnxruntime", 1

    def __init__(self, graph: bytes | Path, threads: int, session_config: Mapping[str, str] | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        for key, value in (session_config or {}).items():
            options.add_session_config_entry(key, value)
        # A thread that spins while it waits takes a core from the deployments on the same machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = graph if isinstance(graph, bytes) else str(graph)
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """See Runtime."""
        features: np.ndarray = self._session.run([FEATURES], {PIXELS: pixels})[0]
        return features
