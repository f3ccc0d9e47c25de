"""Comparison of a runtime with plain NumPy on a few test images, each time that weights are loaded.

``build_runtime`` compares whatever chose the runtime: the config, a measurement (timing.py) or an earlier start.
"""

from __future__ import annotations

import numpy as np

from serve_app.errors import EngineError
from serve_app.inference.network import Arrays
from serve_app.inference.runtimes.base import Runtime
from serve_app.inference.runtimes.reference import reference_features
from serve_app.model_card import ImageTransform

# Largest relative_error of a runtime's features. Measured on the demo model and on random weights, over noise, smooth
# and blank images: winograd and onnxruntime 2e-6, amx 2e-5, winograd int16 0.0013, amx bf16 0.014, int8 0.26 (its
# ranges clip what calibration never saw). Features of a wrong kernel are unrelated to the reference: their error is
# about 1.
FLOAT_TOLERANCE, INT16_TOLERANCE, BF16_TOLERANCE, INT8_TOLERANCE = 1e-3, 0.02, 0.2, 0.5
TOLERANCES = {
    **dict.fromkeys(("torch", "amx", "winograd", "onnxruntime"), FLOAT_TOLERANCE),
    "winograd int16": INT16_TOLERANCE,
    "amx bf16": BF16_TOLERANCE,
    "onnxruntime int8": INT8_TOLERANCE,
}


class Reference:
    """The features of the test images, computed without the code of any runtime.

    Args:
        arrays: The weights.
        transform: The model's crop size, mean and std.

    Raises:
        EngineError: A feature is not a finite number.
    """

    def __init__(self, arrays: Arrays, transform: ImageTransform) -> None:
        self._images = make_test_images(transform.crop_px)
        self._features = reference_features(arrays, transform, self._images)
        if not np.isfinite(self._features).all():
            raise EngineError("the model's features of a test image are not finite numbers: its weights are broken")

    def check(self, runtime: Runtime) -> None:
        """Raise EngineError if the runtime fails on the test images, or if its features differ from the reference."""
        tolerance = TOLERANCES[runtime.name]
        try:
            error = relative_error(runtime(self._images), self._features)
        except Exception as failure:
            reason = " ".join(str(failure).split())[:200]
            raise EngineError(f"engine {runtime.name}: it fails on a test image ({reason})") from failure
        if not error <= tolerance:  # NaN fails too
            raise EngineError(
                f"engine {runtime.name}: its features differ from the reference by {error:.1e} (tolerance "
                f"{tolerance:g}), so it computes wrong results here; set another `runtime`"
            )


def make_test_images(crop_px: int) -> np.ndarray:
    """Make the same three images each time: noise, and two smooth ones, because photos are mostly smooth.

    Returns:
        uint8, (3, crop_px, crop_px, 3).
    """
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (crop_px, crop_px, 3), np.uint8)]
    for colors in (7, 3):
        coarse = random.integers(0, 256, (3, colors, colors)).astype(float)
        blend = _interpolation(colors, crop_px)
        images.append(np.rint(blend @ coarse @ blend.T).transpose(1, 2, 0).astype(np.uint8))
    return np.stack(images)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest error of an image's features: the L2 norm of the difference over that of ``expected``."""
    with np.errstate(all="ignore"):  # features of a broken runtime may be no numbers
        difference, norm = (
            np.linalg.norm(features.reshape(len(features), -1), axis=1) for features in (actual - expected, expected)
        )
        return float((difference / np.maximum(norm, np.finfo(np.float32).tiny)).max())


def _interpolation(count: int, size: int) -> np.ndarray:
    """Return the matrix that stretches ``count`` values to ``size`` pixels, linearly: (size, count)."""
    places = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    weights: np.ndarray = np.maximum(1 - np.abs(places[:, None] - np.arange(count)), 0)
    return weights
