"""The backbone on a CPU, by three runtimes that differ in speed and not in answers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from serve_app.backbones.graph import FEATURES, PIXELS
from serve_app.schemas import ImageTransform

CPU = torch.device("cpu")


class Backbone(Protocol):
    """Everything of a ResNet-18 but its pooling and last layer.

    Attributes:
        name: Of the runtime.
        device: Where the features are.
    """

    name: str
    device: torch.device

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Run a batch.

        Args:
            pixels: uint8, (N, H, W, 3), RGB, 0-255.

        Returns:
            The last feature map: float32, (N, 512, h, w).
        """


class TorchBackbone:
    """PyTorch in channels-last memory, which saves a CPU memory traffic. Runs everywhere."""

    name, device = "torch", CPU

    def __init__(self, model: ResNet, transform: ImageTransform) -> None:
        """Prepare a folded model; its memory layout is changed in place."""
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
    """ONNX Runtime: blocked direct convolutions, the fastest where the CPU has AVX-512."""

    name, device = "onnxruntime", CPU

    def __init__(self, graph: bytes | Path, threads: int) -> None:
        """Load a graph as backbones.graph writes it."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # A thread that spins while it waits takes the core from the stages that share it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = graph if isinstance(graph, bytes) else str(graph)
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """See Backbone."""
        return torch.from_numpy(self._session.run([FEATURES], {PIXELS: pixels})[0])


class MnnBackbone:
    """MNN: Winograd convolutions, the fastest where the CPU stops at AVX2.

    Only its runtime and its compiled converter are used: its Python tools call home and
    install packages when they run.
    """

    name, device = "mnn", CPU
    _PRECISE: ClassVar = {"backend": "CPU", "precision": "high"}

    def __init__(self, graph: bytes, threads: int) -> None:
        """Convert and load a graph as backbones.graph writes it."""
        import _tools as converter  # MNN's own, compiled
        from MNN import expr
        from MNN import nn as mnn

        self._expr = expr
        with tempfile.TemporaryDirectory() as folder:
            source, converted = Path(folder, "graph.onnx"), Path(folder, "graph.mnn")
            source.write_bytes(graph)
            converter.mnnconvert(
                ["", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(converted), "--keepInputFormat", "1"]
            )
            runtime = mnn.create_runtime_manager(({**self._PRECISE, "numThread": threads},))
            self._net = mnn.load_module_from_file(str(converted), [PIXELS], [FEATURES], runtime_manager=runtime)

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """See Backbone."""
        # NCHW is MNN's word for "leave the axes alone".
        given = self._expr.const(pixels, pixels.shape, self._expr.NCHW, self._expr.uint8)
        return torch.from_numpy(self._net.forward([given])[0].read().copy())
