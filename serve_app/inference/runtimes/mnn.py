"""MNN on a CPU, the fastest library on CPUs without AVX-512 (docs/performance.md)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from serve_app.errors import EngineError
from serve_app.inference.runtimes.base import CPU
from serve_app.inference.runtimes.onnx_graph import FEATURES, PIXELS

# MNN's compiled converter. MNN's Python tools open network connections and install packages when they run.
CONVERTER = "_tools"


def to_mnn(graph: bytes) -> bytes:
    """Convert a serialized graph of ``onnx_graph.to_onnx`` to MNN's format.

    The converter runs in its own process because it holds the global interpreter lock until it ends.

    Raises:
        ImportError: MNN is not installed.
        EngineError: The converter failed.
    """
    if find_spec(CONVERTER) is None:
        raise ImportError(f"module {CONVERTER}, MNN's compiled converter, is not installed")
    program = f"import sys, {CONVERTER}; {CONVERTER}.mnnconvert(['', *sys.argv[1:]])"
    with tempfile.TemporaryDirectory() as folder:
        source, converted = Path(folder, "graph.onnx"), Path(folder, "graph.mnn")
        source.write_bytes(graph)
        files = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(converted), "--keepInputFormat", "1"]
        process = subprocess.run([sys.executable, "-P", "-c", program, *files], capture_output=True, text=True)
        if not converted.exists():  # the exit status is 0 after a failure too
            raise EngineError(f"engine mnn: MNN's converter failed: {(process.stdout + process.stderr).strip()[-300:]}")
        return converted.read_bytes()


class MnnRuntime:
    """MNN, which convolves by Winograd's method; its wheel has no AVX-512 code.

    Of MNN's two Python interfaces this class uses the session interface, which releases the global interpreter lock
    while it runs. MNN holds the lock for 0.2 s to repack the weights of a graph, as ``to_mnn`` returns it.

    Raises:
        ImportError: MNN is not installed.
    """

    name, device, workers = "mnn", CPU, 1

    def __init__(self, converted: bytes, threads: int, crop_px: int) -> None:
        import MNN

        self._mnn = MNN
        with tempfile.NamedTemporaryFile(suffix=".mnn") as file:
            file.write(converted)
            file.flush()
            self._interpreter = MNN.Interpreter(file.name)
        self._session = self._interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": threads})
        self._input = self._interpreter.getSessionInput(self._session, PIXELS)
        self._resize((1, crop_px, crop_px, 3))

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """See Runtime; one thread at a time."""
        mnn, interpreter = self._mnn, self._interpreter
        if pixels.shape != self._shape:
            self._resize(pixels.shape)
        layout = self._input.getDimensionType()
        self._input.copyFrom(mnn.Tensor(pixels.shape, mnn.Halide_Type_Uint8, pixels, layout))
        interpreter.runSession(self._session)
        output = interpreter.getSessionOutput(self._session, FEATURES)
        features = np.empty(output.getShape(), np.float32)
        host = mnn.Tensor(features.shape, mnn.Halide_Type_Float, features, mnn.Tensor_DimensionType_Caffe)
        output.copyToHostTensor(host)
        return torch.from_numpy(host.getNumpyData().copy())

    def _resize(self, shape: tuple[int, ...]) -> None:
        self._interpreter.resizeTensor(self._input, shape)
        self._interpreter.resizeSession(self._session)
        self._shape = shape
