"""Write a ResNet-18 up to its last feature map as an ONNX graph that takes raw pixels.

onnx is imported when a graph is written: the torch, winograd and cuda runtimes work without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from serve_app.inference.network import STAGES, Block, Convolution, Network
from serve_app.model_card import ImageTransform

if TYPE_CHECKING:
    import onnx
    from onnx import TensorProto

OPSET, IR_VERSION = 17, 8  # of ONNX 1.12, which every runtime since 2022 reads
PIXELS, FEATURES = "pixels", "features"


def to_onnx(network: Network, transform: ImageTransform) -> onnx.ModelProto:
    """Write a network as ONNX: normalization in front, no pooling, no last layer.

    Returns:
        A graph from ``pixels``, uint8 (N, H, W, 3), to ``features``, float32 (N, 512, h, w).
    """
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph()
    x = graph.op("Cast", [PIXELS], "float", to=TensorProto.FLOAT)
    x = graph.op("Transpose", [x], "planes", perm=[0, 3, 1, 2])
    # Pixels are 0-255; mean and std are defined for 0-1.
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) * 255 for v in (transform.mean, transform.std))
    x = graph.op("Sub", [x, graph.constant("mean", mean)], "centered")
    x = graph.op("Mul", [x, graph.constant("scale", 1 / std)], "normalized")
    x = graph.convolution(network.stem, x, "stem", relu=True)
    x = graph.op("MaxPool", [x], "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    stages = zip(STAGES, network.stages, strict=True)
    blocks = [(f"{stage}.{i}", block) for stage, blocks in stages for i, block in enumerate(blocks)]
    for name, block in blocks:
        x = graph.block(block, x, name, FEATURES if name == blocks[-1][0] else f"{name}.out")
    pixels = helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["n", "h", "w", 3])
    features = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["n", 512, None, None])
    written = make_model(helper.make_graph(graph.nodes, "resnet18-features", [pixels], [features], graph.constants))
    onnx.checker.check_model(written)
    return written


def make_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """Return a graph as a model of this project's ONNX version."""
    from onnx import helper

    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


class _Graph:
    """Operators in the order in which they run, each named after its output, and their constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def block(self, block: Block, x: str, name: str, output: str) -> str:
        shortcut = self.convolution(block.shortcut, x, f"{name}.shortcut") if block.shortcut else x
        y = self.convolution(block.conv1, x, f"{name}.conv1", relu=True)
        y = self.convolution(block.conv2, y, f"{name}.conv2")
        return self.op("Relu", [self.op("Add", [y, shortcut], f"{name}.sum")], output)

    def convolution(self, conv: Convolution, x: str, name: str, relu: bool = False) -> str:
        weight, bias = (self.constant(f"{name}.{part}", getattr(conv, part)) for part in ("weight", "bias"))
        sizes = {"kernel_shape": [conv.window] * 2, "strides": [conv.stride] * 2, "pads": [conv.padding] * 4}
        y = self.op("Conv", [x, weight, bias], name, **sizes)
        return self.op("Relu", [y], f"{name}.relu") if relu else y

    def op(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add an operator and return the name of its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add an array and return its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(values, name))
        return name
