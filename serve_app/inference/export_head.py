"""A backbone and a taught head as one model: weights with a card that the service runs, or ONNX for other programs.

Each file is read again and compared with the scores that the service gives before anybody gets it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.models import ResNet

from serve_app.config import WeightsConfig
from serve_app.errors import EngineError, InvalidParameterError
from serve_app.files import atomic_write
from serve_app.inference.network import fold
from serve_app.inference.runtimes.onnx_graph import FEATURES, PIXELS, make_model, to_onnx
from serve_app.inference.runtimes.parity import make_test_images
from serve_app.inference.torch_model import load_model, publish_exact, to_arrays
from serve_app.model_card import ModelCard

if TYPE_CHECKING:
    import onnx

SCORES, EMBEDDING = "scores", "embedding"  # outputs of the ONNX graph
MAX_SCORE_DIFFERENCE = 1e-3  # ONNX Runtime sums in another order; measured 1e-5 (tests/unit/inference)


class HeadLayer(NamedTuple):
    """A head as the last layer of a network."""

    name: str
    version: str
    labels: tuple[str, ...]
    weight: np.ndarray  # float32, (classes, 512)
    bias: np.ndarray  # float32, (classes,)


def export_weights(layer: HeadLayer, weights: WeightsConfig, out: Path) -> None:
    """Write a zip of ``<name>.safetensors`` and its card ``<name>.json``, which `serve-app run --weights` takes.

    Raises:
        InvalidParameterError: A head of one class is no classifier (422).
        EngineError: The written model gives other scores than the service.
        WeightsError: The backbone cannot be loaded.
    """
    if len(layer.labels) < 2:
        raise InvalidParameterError("format: a head of one class has no weights to run; export it as onnx")
    model, card = load_model(weights)
    expected, images = _expected(model, card, layer)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("fc.")}
    state |= {"fc.weight": torch.from_numpy(layer.weight.copy()), "fc.bias": torch.from_numpy(layer.bias.copy())}
    fields: dict[str, Any] = {
        "name": layer.name,
        "version": layer.version,
        "labels": layer.labels,
        "transform": card.transform,
        "training": {"backbone": card.ref.model_dump()},
        "licenses": card.licenses,
        "notes": f"The taught head {layer.name!r} on the backbone {card.name!r}, {card.version!r}.",
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{layer.name}.safetensors"
        written = publish_exact(state, fields, path)
        loaded, _ = load_model(WeightsConfig(source=str(path), sha256=written.sha256))
        with torch.inference_mode():
            _compare(loaded(images).softmax(1).numpy(), expected)
        with atomic_write(out) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
            for file in (path, path.with_suffix(".json")):
                archive.write(file, file.name)


def export_onnx(layer: HeadLayer, weights: WeightsConfig, out: Path) -> None:
    """Write an ONNX graph from ``pixels``, uint8 (N, crop_px, crop_px, 3), RGB, to ``scores`` and ``embedding``.

    Its metadata has the labels, and the sizes of resizing and cropping, which come before the graph.

    Raises:
        EngineError: The graph gives other scores than the service.
        WeightsError: The backbone cannot be loaded.
    """
    model, card = load_model(weights)
    expected, _ = _expected(model, card, layer)
    graph = _with_head(to_onnx(fold(to_arrays(model)), card.transform), layer)
    metadata = {"labels": json.dumps(layer.labels, ensure_ascii=False), "name": layer.name, "version": layer.version}
    metadata |= {name: str(getattr(card.transform, name)) for name in ("resize_px", "crop_px")}
    for key, value in metadata.items():
        graph.metadata_props.add(key=key, value=value)
    content = graph.SerializeToString()
    _compare(run_onnx(content, make_test_images(card.transform.crop_px)), expected)
    with atomic_write(out) as unfinished:
        unfinished.write_bytes(content)


def run_onnx(graph: bytes, pixels: np.ndarray) -> np.ndarray:
    """Return the scores that ONNX Runtime computes from an exported graph."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    scores: np.ndarray = session.run([SCORES], {PIXELS: pixels})[0]
    return scores


def _with_head(model: onnx.ModelProto, layer: HeadLayer) -> onnx.ModelProto:
    """Append pooling, the head and softmax to a graph of features."""
    from onnx import TensorProto, checker, helper, numpy_helper

    graph, classes = model.graph, len(layer.labels)
    nodes = [
        helper.make_node("GlobalAveragePool", [FEATURES], ["pooled_features"]),
        helper.make_node("Flatten", ["pooled_features"], [EMBEDDING]),
        helper.make_node("Gemm", [EMBEDDING, "head.weight", "head.bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], [SCORES], axis=1),
    ]
    constants = [
        numpy_helper.from_array(array, f"head.{name}")
        for name, array in (("weight", layer.weight), ("bias", layer.bias))
    ]
    outputs = [
        helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["n", classes]),
        helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["n", layer.weight.shape[1]]),
    ]
    extended = make_model(
        helper.make_graph(
            [*graph.node, *nodes], "resnet18-head", list(graph.input), outputs, [*graph.initializer, *constants]
        )
    )
    checker.check_model(extended)
    return extended


def _expected(model: ResNet, card: ModelCard, layer: HeadLayer) -> tuple[np.ndarray, Tensor]:
    """Return what the service's head says about test images, and the normalized images."""
    pixels = make_test_images(card.transform.crop_px)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (card.transform.mean, card.transform.std))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - mean) / std
    own_layer, model.fc = model.fc, torch.nn.Identity()  # the features before the last layer
    with torch.inference_mode():
        logits = model(images) @ torch.from_numpy(layer.weight.T.copy()) + torch.from_numpy(layer.bias.copy())
    model.fc = own_layer
    return logits.softmax(1).numpy(), images


def _compare(scores: np.ndarray, expected: np.ndarray) -> None:
    difference = float(np.abs(scores - expected).max())
    if not difference <= MAX_SCORE_DIFFERENCE:
        raise EngineError(f"the exported model's scores differ from the service's by {difference:.4f}")
