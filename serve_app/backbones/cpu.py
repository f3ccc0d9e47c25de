"""The backbone on a CPU, by three runtimes of others; ``winograd`` is ours. They differ in speed and not in answers."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Condition
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from serve_app.backbones.graph import FEATURES, PIXELS
from serve_app.errors import EngineError
from serve_app.schemas import ImageTransform

CPU = torch.device("cpu")
LATELY_S = 2
CONVERTER = "_tools"  # MNN's own, compiled; its Python tools call home and install packages when they run


class Backbone(Protocol):
    """Everything of a ResNet-18 but its pooling and last layer.

    Attributes:
        name: Of the runtime.
        device: Where the features are.
        lanes: How many batches it takes at a time, each from a thread of its own.
    """

    name: str
    device: torch.device
    lanes: int

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Run a batch.

        Args:
            pixels: uint8, (N, H, W, 3), RGB, 0-255.

        Returns:
            The last feature map: float32, (N, 512, h, w).
        """


class TorchBackbone:
    """PyTorch in channels-last memory, which saves a CPU memory traffic. Runs everywhere."""

    name, device, lanes = "torch", CPU, 1

    def __init__(self, model: ResNet, transform: ImageTransform, threads: int) -> None:
        """Prepare a folded model; its memory layout is changed in place. The threads are the whole process's."""
        torch.set_num_threads(threads)
        model.to(memory_format=torch.channels_last)
        self._features = nn.Sequential(*list(model.children())[:-2])
        # Pixels arrive as 0-255, mean and std are meant for 0-1.
        self._mean, self._std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (transform.mean, transform.std))

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """See Backbone."""
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # channels-last already: nothing moves
        features: Tensor = self._features(batch.float().sub_(self._mean).div_(self._std))
        return features


class OnnxRuntimeBackbone:
    """ONNX Runtime: blocked direct convolutions. For any number of threads at a time."""

    name, device, lanes = "onnxruntime", CPU, 1

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
        """See Backbone."""
        return torch.from_numpy(self._session.run([FEATURES], {PIXELS: pixels})[0])


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


class MnnBackbone:
    """MNN: Winograd convolutions, for CPUs that stop at AVX2.

    Of its two interfaces this is the one that lets go of Python's lock while it runs.
    """

    name, device, lanes = "mnn", CPU, 1

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
        """See Backbone. Not for two threads at a time."""
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


class Lanes:
    """Several batches at a time, one core each; a batch that comes when little is asked gets all cores.

    So a queue is worked off without threads that wait for each other, and a lone image
    does not leave cores idle. Two threads on an image end it in 0.65 to 0.75 of the time for 1.3
    to 1.5 times the CPU, as they spin where they wait, and for several times the CPU where others want
    the cores: so what met another batch of late has a core of its own, and what comes while
    one batch has all cores waits for it.
    """

    device = CPU

    def __init__(self, make: Callable[[int], Backbone], cores: int) -> None:
        """Make one backbone per core, and one for all.

        Args:
            make: Makes a backbone for so many threads.
            cores: What the batches share.
        """
        self._wide = make(cores)
        self.name, self.lanes = self._wide.name, cores
        self._narrow: SimpleQueue[Backbone] = SimpleQueue()
        for _ in range(cores):
            self._narrow.put(make(1))
        self._changed = Condition()
        self._running, self._all_taken = 0, False
        self._met = -math.inf  # when two batches were last there at a time

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """See Backbone; for at most ``lanes`` threads at a time."""
        with self._changed:
            if self._running:
                self._met = time.monotonic()
            alone = not self._running and time.monotonic() - self._met > LATELY_S
            self._running += 1  # one that waits counts: who comes when the lone batch ends must not take all cores too
            self._changed.wait_for(lambda: not self._all_taken)
            self._all_taken = alone
        backbone = self._wide if alone else self._narrow.get()
        try:
            return backbone(pixels)
        finally:
            with self._changed:
                self._running -= 1
                if alone:
                    self._all_taken = False
                    self._changed.notify_all()
                else:
                    self._narrow.put(backbone)
