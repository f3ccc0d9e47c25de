"""MNN on a CPU, for CPUs without AVX-512."""

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

CONVERTER = "_tools"  # MNN's own, compiled; its Python tools call home and install packages when they run


def to_mnn(graph: bytes) -> bytes:
    """Convert a graph as backbones.graph writes it; in a process of its own, as it keeps Python's lock all along.

    Raises:
        ImportError: MNN is not installed here.
        EngineError: Its converter failed.
    """
    if find_spec(CONVERTER) is None:
        raise ImportError(f"there is no module {CONVERTER}, which is MNN's compiled converter")
    program = f"import sys, {CONVERTER}; {CONVERTER}.mnnconvert(['', *sys.argv[1:]])"
    with tempfile.TemporaryDirectory() as folder:
        source, converted = Path(folder, "graph.onnx"), Path(folder, "graph.mnn")
        source.write_bytes(graph)
        files = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(converted), "--keepInputFormat", "1"]
        done = subprocess.run([sys.executable, "-P", "-c", program, *files], capture_output=True, text=True)
        if not converted.exists():  # its exit status says nothing
            raise EngineError(f"engine mnn: its converter failed: {(done.stdout + done.stderr).strip()[-300:]}")
        return converted.read_bytes()


class MnnRuntime:
    """MNN: Winograd convolutions, for CPUs that stop at AVX2.

    Of its two interfaces this is the one that lets go of Python's lock while it runs.
    """

    name, device, workers = "mnn", CPU, 1

    def __init__(self, converted: bytes, threads: int, crop_px: int) -> None:
        """Load a graph as ``to_mnn`` writes it, and lay its weights out, which takes Python's lock for 0.2 s."""
        import MNN

        self._mnn = MNN
        with tempfile.NamedTemporaryFile(suffix=".mnn") as file:
            file.write(converted)
            file.flush()
            self._interpreter = MNN.Interpreter(file.name)
        self._session = self._interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": threads})
        self._pixels = self._interpreter.getSessionInput(self._session, PIXELS)
        self._resize((1, crop_px, crop_px, 3))

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """See Runtime. Not for two threads at a time."""
        mnn, interpreter = self._mnn, self._interpreter
        if pixels.shape != self._shape:
            self._resize(pixels.shape)
        axes = self._pixels.getDimensionType()
        self._pixels.copyFrom(mnn.Tensor(pixels.shape, mnn.Halide_Type_Uint8, pixels, axes))
        interpreter.runSession(self._session)
        found = interpreter.getSessionOutput(self._session, FEATURES)
        features = np.empty(found.getShape(), np.float32)
        host = mnn.Tensor(features.shape, mnn.Halide_Type_Float, features, mnn.Tensor_DimensionType_Caffe)
        found.copyToHostTensor(host)
        return torch.from_numpy(host.getNumpyData().copy())

    def _resize(self, shape: tuple[int, ...]) -> None:
        self._interpreter.resizeTensor(self._pixels, shape)
        self._interpreter.resizeSession(self._session)
        self._shape = shape
