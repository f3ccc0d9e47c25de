"""A ResNet-18 up to its last feature map, as an ONNX graph that takes raw pixels.

onnx is imported when a graph is written: an engine that needs none runs without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from serve_app.model_card import ImageTransform

if TYPE_CHECKING:
    import onnx
    from onnx import TensorProto

OPSET, IR_VERSION = 17, 8  # ONNX 1.12: what every runtime since 2022 reads
PIXELS, FEATURES = "pixels", "features"
STAGES = ("layer1", "layer2", "layer3", "layer4")


def to_onnx(model: ResNet, transform: ImageTransform) -> onnx.ModelProto:
    """Write a model as ONNX, with the normalization in front and without pooling and head.

    Args:
        model: Batch norms folded into the convolutions (``backbones.fold``), on the CPU.
        transform: Its mean and std.

    Returns:
        A graph from ``pixels``, uint8 (N, H, W, 3), to ``features``, float32 (N, 512, h, w).
    """
    return Writer(transform).write(model)


class Writer:
    """Writes a model's operators, in the order in which they run; each is named after its output."""

    def __init__(self, transform: ImageTransform) -> None:
        """Begin with nothing; the transform's mean and std come first."""
        self._transform = transform
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []

    def write(self, model: ResNet) -> onnx.ModelProto:
        """See to_onnx."""
        import onnx
        from onnx import TensorProto, helper

        pixels = self.op("Cast", [PIXELS], "float", to=TensorProto.FLOAT)
        planes = self.op("Transpose", [pixels], "planes", perm=[0, 3, 1, 2])
        # Pixels arrive as 0-255, mean and std are meant for 0-1.
        mean, std = (
            np.array(values, np.float32).reshape(1, 3, 1, 1) * 255
            for values in (self._transform.mean, self._transform.std)
        )
        centered = self.op("Sub", [planes, self.constant("mean", mean)], "centered")
        x = self.op("Mul", [centered, self.constant("scale", 1 / std)], "normalized")
        x = self.convolution(model.conv1, x, "stem", relu=True)
        x = self.op("MaxPool", [x], "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        for name in STAGES:
            stage = getattr(model, name)
            out = FEATURES if name == STAGES[-1] else f"{name}.{len(stage) - 1}.out"
            x = self.stage(stage, x, name, out)
        graph = helper.make_graph(
            self._nodes,
            "resnet18-features",
            [helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["n", "h", "w", 3])],
            [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["n", 512, None, None])],
            self._constants,
        )
        written = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(written)
        return written

    def stage(self, stage: nn.Sequential, x: str, name: str, out: str) -> str:
        """Write the blocks whose feature maps are of one size; gives the name of the last one's output."""
        for number, block in enumerate(stage):
            last = number == len(stage) - 1
            x = self._block(block, x, f"{name}.{number}", out if last else f"{name}.{number}.out")
        return x

    def _block(self, block: BasicBlock, x: str, name: str, out: str) -> str:
        shortcut = x if block.downsample is None else self.convolution(block.downsample[0], x, f"{name}.shortcut")
        y = self.convolution(block.conv1, x, f"{name}.conv1", relu=True)
        y = self.convolution(block.conv2, y, f"{name}.conv2")
        return self.add(y, shortcut, name, out)

    def add(self, y: str, shortcut: str, name: str, out: str) -> str:
        """Write the end of a block."""
        return self.op("Relu", [self.op("Add", [y, shortcut], f"{name}.sum")], out)

    def convolution(self, conv: nn.Conv2d, x: str, name: str, relu: bool = False) -> str:
        """Write a convolution as it is, on an image (N, C, H, W)."""
        weight, bias = (
            self.constant(f"{name}.{part}", values)
            for part, values in zip(("weight", "bias"), parameters(conv), strict=True)
        )
        pads = [*conv.padding, *conv.padding]
        y = self.op("Conv", [x, weight, bias], name, kernel_shape=conv.kernel_size, strides=conv.stride, pads=pads)
        return self.op("Relu", [y], f"{name}.relu") if relu else y

    def op(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Write an operator; gives the name of its output."""
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        """Write an array; gives its name."""
        from onnx import numpy_helper

        self._constants.append(numpy_helper.from_array(values, name))
        return name


def parameters(conv: nn.Conv2d) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias: float32, (Co, C, k, k) and (Co).

    Raises:
        ValueError: It has no bias.
    """
    if conv.bias is None:
        raise ValueError("fold the batch norms first: a convolution has no bias")
    return conv.weight.detach().numpy(), conv.bias.detach().numpy()
