"""The last layers: torch's numbers, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serve_app.config import WeightsConfig
from serve_app.inference.head import Head, pool
from serve_app.inference.weights import load_weights


@pytest.mark.parametrize("side", [3, 7])
@pytest.mark.parametrize("images", [1, 3, 8])
def test_pooling_is_torchs_to_the_last_bit(images: int, side: int) -> None:
    """For channels-last maps, as our kernels write them: taught heads depend on embeddings of earlier versions."""
    maps = np.random.default_rng(images).exponential(size=(images, side, side, 512)).astype(np.float32)
    features = maps.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(pool(features), torch.from_numpy(features).mean((2, 3)).numpy())


def test_scores_are_torchs(weights: WeightsConfig) -> None:
    """Within a millionth, in falling order; the entropy too."""
    arrays, card = load_weights(weights)
    pooled = np.random.default_rng(0).exponential(size=(5, 512)).astype(np.float32)
    best = Head(arrays, card).best(pooled, 6)
    weight, bias = (torch.from_numpy(arrays[name]) for name in ("fc.weight", "fc.bias"))
    logs = (torch.from_numpy(pooled) @ weight.T + bias).log_softmax(1)
    expected = logs.exp().sort(1, descending=True)
    np.testing.assert_allclose(best[1::2].T, expected.values, atol=1e-6)
    np.testing.assert_array_equal(best[2::2].T, expected.indices)
    np.testing.assert_allclose(best[0], -(logs.exp() * logs).sum(1), atol=1e-5)


def test_an_image_gets_the_same_bits_in_any_batch(weights: WeightsConfig) -> None:
    head = Head(*load_weights(weights))
    pooled = np.random.default_rng(0).exponential(size=(16, 512)).astype(np.float32)
    together = head.best(pooled, 6)
    for size in (1, 2, 5):
        np.testing.assert_array_equal(head.best(pooled[:size], 6), together[:, :size])
