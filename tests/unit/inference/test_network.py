"""The network as arrays: the same convolutions as PyTorch's, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.config import WeightsConfig
from serve_app.inference.network import STAGES, Convolution, check_arrays, fold
from serve_app.inference.runtimes.folding import fold as fold_model
from serve_app.inference.torch_model import load_model, to_arrays
from serve_app.inference.weights import load_weights


def test_folding_is_torchs_to_the_last_bit(weights: WeightsConfig) -> None:
    """Weight, bias, stride and padding of every convolution."""
    network, model = fold(load_weights(weights)[0]), fold_model(load_model(weights)[0])
    pairs: list[tuple[Convolution, object]] = [(network.stem, model.conv1)]
    for name, blocks in zip(STAGES, network.stages, strict=True):
        for block, other in zip(blocks, getattr(model, name), strict=True):
            pairs += [(block.conv1, other.conv1), (block.conv2, other.conv2)]
            assert (block.shortcut is None) == (other.downsample is None)
            if block.shortcut:
                pairs.append((block.shortcut, other.downsample[0]))
    assert len(pairs) == 20
    for ours, conv in pairs:
        np.testing.assert_array_equal(ours.weight, conv.weight.detach().numpy())  # type: ignore[attr-defined]
        np.testing.assert_array_equal(ours.bias, conv.bias.detach().numpy())  # type: ignore[attr-defined]
        assert ((ours.stride,) * 2, (ours.padding,) * 2) == (conv.stride, conv.padding)  # type: ignore[attr-defined]


def test_models_and_arrays_are_the_same_weights(weights: WeightsConfig) -> None:
    arrays = load_weights(weights)[0]
    again = to_arrays(load_model(weights)[0])
    assert arrays.keys() == again.keys()
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("fc.bias", None, "fc.bias is missing"),
        ("layer5.0.conv1.weight", (1,), "it has no layer5.0.conv1.weight"),
        ("fc.weight", (7, 512), r"fc.weight has the shape \(7, 512\), expected \(6, 512\)"),
        ("layer2.0.downsample.0.weight", (128, 64, 3, 3), "layer2.0.downsample.0.weight has the shape"),
    ],
)
def test_other_architectures_are_named(
    weights: WeightsConfig, name: str, shape: tuple[int, ...] | None, sentence: str
) -> None:
    arrays = dict(load_weights(weights)[0])
    check_arrays(arrays, 6)
    arrays.pop(name, None)
    if shape:
        arrays[name] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=sentence):
        check_arrays(arrays, 6)
