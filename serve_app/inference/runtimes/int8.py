"""Run the network in int8 with ONNX Runtime: uint8 activations, int8 weights, float32 features.

A quantized value q stands for ``scale * (q - zero_point)`` (Jacob et al. 2018, arXiv:1712.05877). Scales and zero
points of activations come from the ranges that ``calibrate`` observed; the model card stores them.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from serve_app.errors import EngineError
from serve_app.inference.runtimes.base import RuntimeFactory
from serve_app.inference.runtimes.onnx_graph import PIXELS, make_model
from serve_app.inference.runtimes.onnxruntime import OnnxRuntime
from serve_app.model_card import ImageTransform, ModelCard

if TYPE_CHECKING:
    import onnx

# Share of an activation's values, in percent, that its range keeps; half of the others are clipped at either end.
# Percentile calibration: Wu et al. 2020, arXiv:2004.09602.
PERCENTILE = 99.999
METHOD = f"percentile {PERCENTILE}"
COMMAND = "serve-app quantize WEIGHTS IMAGES OUT"
QUANTIZED_OPS = ("Conv", "Relu", "MaxPool", "Add")  # everything but the normalization
STEM_PADDING = 3
# ONNX Runtime then multiplies without overflow, at half the speed.
EXACT_SUMS = {"session.x64quantprecision": "1"}
PROBE_LENGTH = 64  # more products than any kernel adds up before it stores the sum


class Int8Runtime(OnnxRuntime):
    """ONNX Runtime in int8, from the first pixel on; it pads images with the mean color."""

    name = "onnxruntime int8"

    def __init__(
        self, graph: bytes, transform: ImageTransform, threads: int, session_config: Mapping[str, str]
    ) -> None:
        super().__init__(graph, threads, session_config)
        self._mean_color = np.clip(np.rint(np.array(transform.mean) * 255), 0, 255).astype(np.uint8)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """See Runtime."""
        return super().__call__(pad(pixels, self._mean_color))


def int8_factory(graph: onnx.ModelProto, card: ModelCard, runtime: str) -> RuntimeFactory:
    """Quantize a graph of ``onnx_graph.to_onnx`` once for all runtimes that the returned factory builds.

    Raises:
        EngineError: The card has no calibration or one of another graph, the configured runtime has no int8, or ONNX
            Runtime is not installed.
    """
    if runtime not in ("auto", "onnxruntime"):
        raise EngineError(f"engine {runtime}: has no int8; set `runtime` to onnxruntime or auto")
    if card.int8 is None:
        raise EngineError(f"engine int8: the card of these weights holds no calibration; make one with `{COMMAND}`")
    if missing := sorted(set(quantized_tensors(graph)) - card.int8.ranges.keys()):
        raise EngineError(f"engine int8: the card has no range for {', '.join(missing)}; calibrate with `{COMMAND}`")
    try:
        quantized = quantize(graph, card.int8.ranges)
        session_config = {} if sums_are_exact() else EXACT_SUMS
    except ImportError as error:
        raise EngineError(f"engine int8: ONNX Runtime is not installed here ({error})") from error
    return lambda threads: Int8Runtime(quantized, card.transform, threads, session_config)


def quantized_tensors(graph: onnx.ModelProto) -> list[str]:
    """Return the names of the activations that need a range, in the order of the graph."""
    return [node.output[0] for node in graph.graph.node if node.op_type in QUANTIZED_OPS]


def calibrate(graph: onnx.ModelProto, batches: Iterable[np.ndarray]) -> dict[str, tuple[float, float]]:
    """Run images through the float32 graph and return the range of each activation that is quantized.

    Args:
        graph: As ``onnx_graph.to_onnx`` writes it.
        batches: uint8, (N, H, W, 3), RGB, 0-255. One batch with all its activations is in memory at a time.

    Returns:
        Lowest and highest value to keep, by the activation's name, rounded to six digits.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):  # the library prints
        source, augmented = Path(folder, "graph.onnx"), Path(folder, "augmented.onnx")
        onnx.save(graph, source)
        calibrator = create_calibrator(
            source,
            augmented_model_path=str(augmented),
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"symmetric": False, "percentile": PERCENTILE},
        )
        for pixels in batches:
            calibrator.collect_data(_BatchReader(pixels))
        ranges = calibrator.compute_data()
    return {
        name: (float(f"{lowest:.6g}"), float(f"{highest:.6g}"))
        for name in quantized_tensors(graph)
        for lowest, highest in [ranges[name].range_value]
    }


def quantize(graph: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> bytes:
    """Quantize every convolution, addition and pooling; the features stay float32.

    Weights become int8 with one scale per output channel. Activations become uint8, because int8 activations take ONNX
    Runtime three times as long.

    Args:
        graph: As ``onnx_graph.to_onnx`` writes it.
        ranges: As ``calibrate`` returns them.

    Returns:
        A graph from pixels with a border (``pad``) to features.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType, TensorData

    tensors_range = {
        name: TensorData(lowest=np.float32(lowest), highest=np.float32(highest))
        for name, (lowest, highest) in {**ranges, "planes": (0.0, 255.0)}.items()
    }
    quantizer = QDQQuantizer(
        fold_normalization(graph),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=tensors_range,
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=list(QUANTIZED_OPS),
        extra_options={},
    )
    quantizer.quantize_model()
    written: bytes = quantizer.model.model.SerializeToString()
    return written


def fold_normalization(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its normalization merged into the first convolution, which then takes padded pixels.

    The convolution's weights are rounded to their int8 steps first, and the bias subtracts the mean as the rounded
    weights see it. Pixels are never negative, so rounding errors would add up over the window otherwise.
    """
    import onnx
    from onnx import numpy_helper

    folded: onnx.ModelProto = onnx.ModelProto.FromString(graph.SerializeToString())
    constants = {constant.name: constant for constant in folded.graph.initializer}
    mean, scale, weight, bias = (
        numpy_helper.to_array(constants[name]) for name in ("mean", "scale", "stem.weight", "stem.bias")
    )
    weight = weight * scale
    step = np.abs(weight).max((1, 2, 3), keepdims=True) / 127 + np.finfo(np.float32).tiny
    weight = np.rint(weight / step) * step
    for name, values in (("stem.weight", weight), ("stem.bias", bias - (weight * mean).sum((1, 2, 3)))):
        constants[name].CopyFrom(numpy_helper.from_array(values, name))
    for name in ("mean", "scale"):
        folded.graph.initializer.remove(constants[name])
    nodes = {node.name: node for node in folded.graph.node}
    for name in ("centered", "normalized"):
        folded.graph.node.remove(nodes[name])
    nodes["stem"].input[0] = "planes"
    pads = next(attribute for attribute in nodes["stem"].attribute if attribute.name == "pads")
    pads.ints[:] = [0, 0, 0, 0]
    return folded


def pad(pixels: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Add the first convolution's border in one color: (N, H, W, 3) becomes (N, H + 6, W + 6, 3)."""
    count, height, width, _ = pixels.shape
    padded = np.empty((count, height + 2 * STEM_PADDING, width + 2 * STEM_PADDING, 3), np.uint8)
    rows, columns = slice(STEM_PADDING, STEM_PADDING + height), slice(STEM_PADDING, STEM_PADDING + width)
    padded[:, :STEM_PADDING] = padded[:, STEM_PADDING + height :] = color
    padded[:, rows, :STEM_PADDING] = padded[:, rows, STEM_PADDING + width :] = color
    padded[:, rows, columns] = pixels
    return padded


def sums_are_exact() -> bool:
    """Report whether ONNX Runtime's fastest int8 kernel sums products without overflow on this CPU.

    On x86 without VNNI it adds two products in 16 bits. Features are then wrong by a third of their range, without an
    error.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["sum"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, PROBE_LENGTH])],
        [helper.make_tensor_value_info("sum", TensorProto.INT32, [1, 1])],
        [numpy_helper.from_array(np.full((PROBE_LENGTH, 1), 127, np.int8), "weight")],
    )
    session = onnxruntime.InferenceSession(make_model(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    total = session.run(None, {"x": np.full((1, PROBE_LENGTH), 255, np.uint8)})[0]
    return int(total[0, 0]) == 255 * 127 * PROBE_LENGTH


class _BatchReader:
    """One batch in the form of ``onnxruntime.quantization.CalibrationDataReader``."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._feeds = iter([{PIXELS: pixels}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)
