"""One shard's images: an error of any kind stays with its image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve_app.batch import worker
from serve_app.batch.worker import Decoder
from serve_app.config import LimitsConfig
from serve_app.model_card import ImageTransform
from tests.support.photos import make_photo
from tests.support.weights import MEAN, STD


@pytest.fixture
def decoder(tmp_path: Path) -> Decoder:
    """A decoder of three photos, made without a job's folders."""
    photos = {f"{n}.jpg": make_photo(n) for n in range(3)}
    made = Decoder.__new__(Decoder)
    made._source = SimpleNamespace(read_ahead=0, read=lambda name, limit: photos[name])  # type: ignore[assignment]
    made._results = SimpleNamespace(shard_names=lambda shard: list(photos))  # type: ignore[assignment]
    made._transform = ImageTransform(resize_px=112, crop_px=96, mean=MEAN, std=STD)
    made._limits = LimitsConfig()
    return made


@pytest.mark.parametrize(
    ("error", "code"),
    [(MemoryError(), "overloaded"), (ValueError("a bug"), "internal"), (RecursionError(), "internal")],
)
def test_an_error_of_any_kind_leaves_the_other_images_alone(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    """Without this, one image ends its shard, and the job with it, in every run."""
    real, bad = worker.preprocess, make_photo(1)

    def failing(encoded: bytes, *rest: Any) -> Any:
        if encoded == bad:
            raise error
        return real(encoded, *rest)

    monkeypatch.setattr(worker, "preprocess", failing)
    decoded = decoder(0)
    assert [each and each[0] for each in decoded.errors] == [None, code, None]
    assert decoded.crops.shape == (2, 96, 96, 3)
    assert np.any(decoded.crops[1])
