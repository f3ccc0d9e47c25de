"""Weights that are known to be worse than those that are served are not deployed unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.release.compare import refuse_worse
from serve_app.release.rollout import RefusedError
from serve_app.release.serve_config import Config
from tests.conftest import publish_random
from tests.support.configs import tuned


def measured(folder: Path, version: str, top1: float, fingerprint: str = "f" * 64) -> tuple[Config, dict[str, Any]]:
    """Weights on disk whose card has a result, and that card as the API tells it."""
    spec = publish_random(folder / version, seed=round(top1 * 100), version=version)
    path = folder / version / "model.json"
    card = json.loads(path.read_text())
    card["metrics"] = {"photos": {"images": 100, "top1": top1, "fingerprint": fingerprint}, "note": "by hand"}
    path.write_text(json.dumps(card))
    return spec.model_dump(), card


def serving(config: Config, weights: Config) -> Config:
    return config | {"applications": [config["applications"][0] | {"args": {"weights": weights}}]}


def test_worse_weights_are_refused_with_both_numbers(config: Config, tmp_path: Path) -> None:
    """In args and in what the Classifier loads live; better ones and those that are served already are not."""
    old, old_card = measured(tmp_path, "old", 0.9)
    worse, _ = measured(tmp_path, "worse", 0.88)
    better, _ = measured(tmp_path, "better", 0.91)
    sentence = r"on photos worse is right in 88\.00%, old \(served\) in 90\.00%: it is worse; --force"
    with pytest.raises(RefusedError, match=sentence):
        list(refuse_worse(serving(config, worse), [old_card]))
    live = tuned(serving(config, old), "Classifier", weights=worse)
    with pytest.raises(RefusedError, match=sentence):
        list(refuse_worse(live, [old_card]))
    assert list(refuse_worse(serving(config, better), [old_card])) == [
        "on photos better is right in 91.00%, old (served) in 90.00%"
    ]
    assert list(refuse_worse(serving(config, old), [old_card])) == []


def test_what_cannot_be_compared_is_said(config: Config, tmp_path: Path) -> None:
    """Other test data, or a card that only the cluster's nodes can read: no reason to refuse."""
    _, old_card = measured(tmp_path, "old", 0.9)
    other, _ = measured(tmp_path, "other", 0.1, fingerprint="e" * 64)
    assert "have no test data in common" in next(refuse_worse(serving(config, other), [old_card]))
    gone = other | {"source": str(tmp_path / "gone.safetensors")}
    assert "not compared with what is served" in next(refuse_worse(serving(config, gone), [old_card]))
