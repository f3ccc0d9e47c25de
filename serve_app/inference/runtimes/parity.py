"""Comparison of a runtime with plain PyTorch on a few test images, each time that weights are loaded.

``select.fastest_runtime`` compares the runtimes that ``auto`` times. A restart, new weights and a runtime that the
config names skip that measurement, so ``build_runtime`` compares in every case.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models import ResNet

from serve_app.errors import EngineError
from serve_app.inference.runtimes.base import Runtime
from serve_app.inference.runtimes.torch import TorchRuntime
from serve_app.model_card import ImageTransform

# Largest relative_error of a runtime's features. Measured on the demo model and on random weights, over noise, smooth
# and blank images: winograd 2e-6, onnxruntime 2e-6, int8 0.26 (its ranges clip what calibration never saw).
# Features of a wrong kernel are unrelated to PyTorch's: their error is about 1.
FLOAT_TOLERANCE, INT8_TOLERANCE = 1e-3, 0.5
TOLERANCES = {
    **dict.fromkeys(("torch", "winograd", "onnxruntime"), FLOAT_TOLERANCE),
    "onnxruntime int8": INT8_TOLERANCE,
}


class Reference:
    """Plain PyTorch's features of the test images.

    Args:
        model: As loaded, in eval mode, on the CPU. Its batch norms may be folded or not.
        transform: The model's crop size, mean and std.

    Raises:
        EngineError: A feature is not a finite number.
    """

    def __init__(self, model: ResNet, transform: ImageTransform) -> None:
        self._images = make_test_images(transform.crop_px)
        with torch.inference_mode():
            # PyTorch's number of threads is that of the process, and another engine of the process may depend on it.
            self._features = TorchRuntime(model, transform, torch.get_num_threads())(self._images)
        if not self._features.isfinite().all():
            raise EngineError("the model's features of a test image are not finite numbers: its weights are broken")

    def check(self, runtime: Runtime) -> None:
        """Raise EngineError if the runtime fails on the test images, or if its features differ from PyTorch's."""
        tolerance = TOLERANCES[runtime.name]
        try:
            with torch.inference_mode():
                error = relative_error(runtime(self._images), self._features)
        except Exception as failure:
            reason = " ".join(str(failure).split())[:200]
            raise EngineError(f"engine {runtime.name}: it fails on a test image ({reason})") from failure
        if not error <= tolerance:  # NaN fails too
            raise EngineError(
                f"engine {runtime.name}: its features differ from PyTorch's by {error:.1e} (tolerance {tolerance:g}), "
                "so it computes wrong results here; set another `runtime`"
            )


def make_test_images(crop_px: int) -> np.ndarray:
    """Make the same three images each time: noise, and two smooth ones, because photos are mostly smooth.

    Returns:
        uint8, (3, crop_px, crop_px, 3).
    """
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (crop_px, crop_px, 3), np.uint8)]
    for colors in (7, 3):
        coarse = torch.from_numpy(random.integers(0, 256, (1, 3, colors, colors)).astype(np.float32))
        smooth = functional.interpolate(coarse, (crop_px, crop_px), mode="bilinear", align_corners=False)
        images.append(smooth[0].permute(1, 2, 0).round().to(torch.uint8).numpy())
    return np.stack(images)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest error of an image's features: the L2 norm of the difference over that of ``expected``."""
    difference, norm = (features.flatten(1).norm(dim=1) for features in (actual - expected, expected))
    return float((difference / norm.clamp(min=torch.finfo(norm.dtype).tiny)).max())
