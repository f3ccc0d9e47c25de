"""A ResNet-18 up to its last feature map, as an ONNX graph that takes raw pixels.

onnx is imported when a graph is written: an engine that needs none runs without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from serve_app.schemas import ImageTransform

if TYPE_CHECKING:
    import onnx
    from onnx import TensorProto

OPSET, IR_VERSION = 17, 8  # ONNX 1.12: what every runtime since 2022 reads
PIXELS, FEATURES = "pixels", "features"


def to_onnx(model: ResNet, transform: ImageTransform) -> onnx.ModelProto:
    """Write a model as ONNX, with the normalisation in front and without pooling and head.

    Args:
        model: Batch norms folded into the convolutions (``backbones.fold``), on the CPU.
        transform: Its mean and std.

    Returns:
        A graph from ``pixels``, uint8 (N, H, W, 3), to ``features``, float32 (N, 512, h, w).
    """
    return _Writer().write(model, transform)


@dataclass
class _Writer:
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def write(self, model: ResNet, transform: ImageTransform) -> onnx.ModelProto:
        import onnx
        from onnx import TensorProto, helper

        pixels = self.op("Cast", [PIXELS], "float", to=TensorProto.FLOAT)
        planes = self.op("Transpose", [pixels], "planes", perm=[0, 3, 1, 2])
        # Pixels arrive as 0-255, mean and std are meant for 0-1.
        mean, std = (
            np.array(values, np.float32).reshape(1, 3, 1, 1) * 255 for values in (transform.mean, transform.std)
        )
        centred = self.op("Sub", [planes, self.constant("mean", mean)], "centred")
        x = self.op("Mul", [centred, self.constant("scale", 1 / std)], "normalised")
        x = self.convolution(model.conv1, x, "stem", relu=True)
        x = self.op("MaxPool", [x], "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, BasicBlock)]
        for name, block in blocks:
            x = self.block(block, x, name, FEATURES if block is blocks[-1][1] else f"{name}.out")
        graph = helper.make_graph(
            self.nodes,
            "resnet18-features",
            [helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["n", "h", "w", 3])],
            [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["n", 512, None, None])],
            self.constants,
        )
        written = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(written)
        return written

    def block(self, block: BasicBlock, x: str, name: str, out: str) -> str:
        shortcut = x if block.downsample is None else self.convolution(block.downsample[0], x, f"{name}.shortcut")
        y = self.convolution(block.conv1, x, f"{name}.conv1", relu=True)
        y = self.convolution(block.conv2, y, f"{name}.conv2")
        return self.op("Relu", [self.op("Add", [y, shortcut], f"{name}.sum")], out)

    def convolution(self, conv: nn.Conv2d, x: str, name: str, relu: bool = False) -> str:
        weight, bias = (
            self.constant(f"{name}.{part}", tensor.detach().numpy())
            for part, tensor in (("weight", conv.weight), ("bias", _required(conv.bias)))
        )
        pads = [*conv.padding, *conv.padding]
        y = self.op("Conv", [x, weight, bias], name, kernel_shape=conv.kernel_size, strides=conv.stride, pads=pads)
        return self.op("Relu", [y], f"{name}.relu") if relu else y

    def op(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(values, name))
        return name


def _required(bias: Tensor | None) -> Tensor:
    if bias is None:
        raise ValueError("fold the batch norms first: a convolution has no bias")
    return bias
