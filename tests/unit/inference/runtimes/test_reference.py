"""The reference in NumPy, with which every runtime is compared, computes torchvision's features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from serve_app.config import WeightsConfig
from serve_app.inference.runtimes.parity import make_test_images, relative_error
from serve_app.inference.runtimes.reference import reference_features
from serve_app.inference.torch_model import load_model, to_arrays

DEMO = WeightsConfig(source="demo")


@pytest.mark.parametrize("crop_px", [64, 97, 224])
def test_features_are_torchvisions(crop_px: int) -> None:
    """Of the demo model, on noise and smooth images, for even and odd sides."""
    model, card = load_model(DEMO)
    images = make_test_images(crop_px)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.transform.mean, card.transform.std))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = nn.Sequential(*list(model.children())[:-2])((pixels - mean) / std).numpy()
    features = reference_features(to_arrays(model), card.transform, images)
    assert (features.shape, features.dtype) == (expected.shape, np.float32)
    assert relative_error(features, expected) < 1e-5
