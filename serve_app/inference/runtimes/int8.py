"""The backbone in bytes on a CPU: activations are uint8 and weights int8, in steps that a calibration chose."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from serve_app.errors import EngineError
from serve_app.inference.runtimes.base import Runtime
from serve_app.inference.runtimes.onnx_graph import IR_VERSION, OPSET, PIXELS
from serve_app.inference.runtimes.onnxruntime import OnnxRuntime
from serve_app.model_card import ImageTransform, ModelCard

if TYPE_CHECKING:
    import onnx

PERCENTILE = 99.999  # of an activation's values, half of the rest cut off on either side
METHOD = f"percentile {PERCENTILE}"
COMMAND = "serve-app quantize WEIGHTS IMAGES OUT"
QUANTIZED = ("Conv", "Relu", "MaxPool", "Add")  # all but the normalization in front
PADDING = 3  # of the first convolution
CAREFUL = {"session.x64quantprecision": "1"}  # makes ONNX Runtime multiply without overflow, at half the speed
BYTES = 64  # more products than any kernel adds up before it writes


class Int8Runtime(OnnxRuntime):
    """ONNX Runtime on bytes from the first pixel on: what is outside of a picture is of the mean color."""

    name = "onnxruntime int8"

    def __init__(self, graph: bytes, transform: ImageTransform, threads: int, settings: Mapping[str, str]) -> None:
        """Load a graph as ``quantize`` writes it."""
        super().__init__(graph, threads, settings)
        self._mean = np.clip(np.rint(np.array(transform.mean) * 255), 0, 255).astype(np.uint8)

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """See Runtime."""
        return super().__call__(padded(pixels, self._mean))


def int8_maker(graph: onnx.ModelProto, card: ModelCard, runtime: str) -> Callable[[int], Runtime]:
    """Prepare backbones that share one int8 graph.

    Args:
        graph: As backbones.graph writes it.
        card: Holds the calibration.
        runtime: See EngineConfig.

    Returns:
        What makes a backbone for so many threads.

    Raises:
        EngineError: No calibration, or one of another model, or another runtime; one sentence.
    """
    if runtime not in ("auto", "onnxruntime"):
        raise EngineError(f"engine {runtime}: has no int8; use runtime onnxruntime or auto")
    if card.int8 is None:
        raise EngineError(f"engine int8: the card of these weights holds no calibration; make one with `{COMMAND}`")
    if lacking := sorted(set(quantized_tensors(graph)) - card.int8.ranges.keys()):
        raise EngineError(f"engine int8: the card has no range for {', '.join(lacking)}; calibrate with `{COMMAND}`")
    try:
        quantized = quantize(graph, card.int8.ranges)
        settings = {} if adds_bytes_exactly() else CAREFUL
    except ImportError as error:
        raise EngineError(f"engine int8: ONNX Runtime is not installed here ({error})") from error
    return lambda threads: Int8Runtime(quantized, card.transform, threads, settings)


def quantized_tensors(graph: onnx.ModelProto) -> list[str]:
    """Names of the activations that need a range, in the order of the graph; pixels are bytes already."""
    return [node.output[0] for node in graph.graph.node if node.op_type in QUANTIZED]


def calibrate(graph: onnx.ModelProto, batches: Iterable[np.ndarray]) -> dict[str, tuple[float, float]]:
    """Run images through the float32 graph and see how far each activation goes.

    Args:
        graph: As backbones.graph writes it.
        batches: uint8, (N, H, W, 3), RGB, 0-255; one batch at a time is held in memory, with all its activations.

    Returns:
        Lowest and highest value to keep of each activation that becomes bytes.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):  # the library prints
        written, observed = Path(folder, "graph.onnx"), Path(folder, "observed.onnx")
        onnx.save(graph, written)
        calibrator = create_calibrator(
            written,
            augmented_model_path=str(observed),
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"symmetric": False, "percentile": PERCENTILE},
        )
        for pixels in batches:
            calibrator.collect_data(_Once(pixels))
        found = calibrator.compute_data()
    return {name: _rounded(*found[name].range_value) for name in quantized_tensors(graph)}


def quantize(graph: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> bytes:
    """Write the graph with every convolution, addition and pooling in bytes; it ends in float32.

    Weights are int8 with a scale per channel. Activations are uint8: signed ones take
    ONNX Runtime three times as long.

    Args:
        graph: As backbones.graph writes it.
        ranges: As ``calibrate`` gives them.

    Returns:
        A graph from ``padded`` pixels to features.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType, TensorData

    limits = {**ranges, "planes": (0.0, 255.0)}
    quantizer = QDQQuantizer(
        from_pixels(graph),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range={
            name: TensorData(lowest=np.float32(lowest), highest=np.float32(highest))
            for name, (lowest, highest) in limits.items()
        },
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=list(QUANTIZED),
        extra_options={},
    )
    quantizer.quantize_model()
    written: bytes = quantizer.model.model.SerializeToString()
    return written


def from_pixels(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Move the normalization into the first convolution, which then takes ``padded`` pixels as they are.

    Its weights are rounded to int8's steps first, so that the bias takes off the mean that
    the rounded weights see: pixels are all positive, and errors would add up over them.
    """
    import onnx
    from onnx import numpy_helper

    edited: onnx.ModelProto = onnx.ModelProto.FromString(graph.SerializeToString())
    constants = {each.name: each for each in edited.graph.initializer}
    mean, scale, weight, bias = (
        numpy_helper.to_array(constants[name]) for name in ("mean", "scale", "stem.weight", "stem.bias")
    )
    weight = weight * scale
    step = np.abs(weight).max((1, 2, 3), keepdims=True) / 127 + np.finfo(np.float32).tiny
    weight = np.rint(weight / step) * step
    for name, values in (("stem.weight", weight), ("stem.bias", bias - (weight * mean).sum((1, 2, 3)))):
        constants[name].CopyFrom(numpy_helper.from_array(values, name))
    for name in ("mean", "scale"):
        edited.graph.initializer.remove(constants[name])
    nodes = {node.name: node for node in edited.graph.node}
    for name in ("centered", "normalized"):
        edited.graph.node.remove(nodes[name])
    nodes["stem"].input[0] = "planes"
    pads = next(attribute for attribute in nodes["stem"].attribute if attribute.name == "pads")
    pads.ints[:] = [0, 0, 0, 0]
    return edited


def padded(pixels: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Add the first convolution's border, of one color: (N, H, W, 3) becomes (N, H + 6, W + 6, 3)."""
    count, height, width, _ = pixels.shape
    framed = np.empty((count, height + 2 * PADDING, width + 2 * PADDING, 3), np.uint8)
    rows, columns = slice(PADDING, PADDING + height), slice(PADDING, PADDING + width)
    framed[:, :PADDING] = framed[:, PADDING + height :] = color
    framed[:, rows, :PADDING] = framed[:, rows, PADDING + width :] = color
    framed[:, rows, columns] = pixels
    return framed


def adds_bytes_exactly() -> bool:
    """Try whether ONNX Runtime's fastest way to add up products of bytes overflows on this CPU.

    It does on x86 without VNNI: two products are added in 16 bits, and features come out
    wrong by a third of their range, in silence.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["sum"])],
        "bytes",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, BYTES])],
        [helper.make_tensor_value_info("sum", TensorProto.INT32, [1, 1])],
        [numpy_helper.from_array(np.full((BYTES, 1), 127, np.int8), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.full((1, BYTES), 255, np.uint8)})[0]
    return int(found[0, 0]) == 255 * 127 * BYTES


class _Once:
    """One batch, as ONNX Runtime's calibrators want their data."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._feeds = iter([{PIXELS: pixels}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _rounded(lowest: float, highest: float) -> tuple[float, float]:
    """To six digits: a step is one 255th of the range."""
    return float(f"{lowest:.6g}"), float(f"{highest:.6g}")
