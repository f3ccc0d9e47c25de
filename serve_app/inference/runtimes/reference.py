"""The network in plain NumPy: what every runtime is compared with before it serves (parity.py).

It follows the definition of ResNet-18 and shares no code with the runtimes: batch norms are not folded, and NumPy's
matrix product computes the convolutions. tests/unit/inference/runtimes/test_reference.py compares it with torchvision.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from serve_app.inference.network import BLOCKS, EPSILON, NORM_PARTS, STAGES, Arrays, Layer, block_layers, stem_layer
from serve_app.model_card import ImageTransform


def reference_features(arrays: Arrays, transform: ImageTransform, pixels: np.ndarray) -> np.ndarray:
    """Return the last feature maps of uint8 pixels (N, H, W, 3), RGB, 0-255: float32, (N, 512, h, w).

    An image of 224 px takes 0.2 s of one core.
    """
    mean, std = (np.array(values, np.float32) for values in (transform.mean, transform.std))
    with np.errstate(all="ignore"):  # features of broken weights are not finite; the caller looks
        images = [_forward(arrays, (image / np.float32(255) - mean) / std) for image in pixels]
    features: np.ndarray = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
    return features


def _forward(arrays: Arrays, image: np.ndarray) -> np.ndarray:
    """Run one normalized image, (H, W, 3), to its last feature map, (h, w, 512)."""
    x: np.ndarray = np.maximum(_layer(arrays, stem_layer(), image), 0)
    x = _windows(x, 3, 2).max((2, 3))  # values are not negative, so padding with zeros changes no maximum
    for stage in range(len(STAGES)):
        for block in range(BLOCKS):
            first, second, shortcut = block_layers(stage, block)
            y = _layer(arrays, second, np.maximum(_layer(arrays, first, x), 0))
            x = np.maximum(y + (_layer(arrays, shortcut, x) if shortcut else x), 0)
    return x


def _layer(arrays: Arrays, layer: Layer, x: np.ndarray) -> np.ndarray:
    """Convolve and apply the batch norm: (H, W, C) becomes (h, w, Co)."""
    weight = arrays[f"{layer.conv}.weight"]
    windows = _windows(x, layer.shape[-1], layer.stride)
    y = windows.reshape(*windows.shape[:2], -1) @ weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
    scale, shift, mean, variance = (arrays[f"{layer.norm}.{part}"] for part in NORM_PARTS)
    normalized: np.ndarray = (y - mean) / np.sqrt(variance + EPSILON) * scale + shift
    return normalized


def _windows(x: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Return a view of the windows of a feature map with a border of zeros: (h, w, window, window, C)."""
    border = window // 2
    padded = np.pad(x, ((border, border), (border, border), (0, 0)))
    windows = sliding_window_view(padded, (window, window), axis=(0, 1))[::stride, ::stride]
    return windows.transpose(0, 1, 3, 4, 2)  # channels last: they are copied in one piece
