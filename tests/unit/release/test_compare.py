"""Weights with a lower measured accuracy than the served model need --force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.release.compare import refuse_worse
from serve_app.release.rollout import RefusedError
from serve_app.release.serve_config import Config
from tests.support.configs import tuned
from tests.support.weights import publish_random


def measured(folder: Path, version: str, top1: float, fingerprint: str = "f" * 64) -> tuple[Config, dict[str, Any]]:
    """Publish weights whose card has a measured accuracy; return their config and the card as the API shows it."""
    spec = publish_random(folder / version, seed=round(top1 * 100), version=version)
    path = folder / version / "model.json"
    card = json.loads(path.read_text())
    card["metrics"] = {"photos": {"images": 100, "top1": top1, "fingerprint": fingerprint}, "note": "by hand"}
    path.write_text(json.dumps(card))
    return spec.model_dump(), card


def serving(config: Config, weights: Config) -> Config:
    return config | {"applications": [config["applications"][0] | {"args": {"weights": weights}}]}


def test_worse_weights_are_refused_with_both_accuracies(config: Config, tmp_path: Path) -> None:
    """Worse weights in `args` or in the Classifier's `user_config` are refused; better and unchanged ones pass."""
    old, old_card = measured(tmp_path, "old", 0.9)
    worse, _ = measured(tmp_path, "worse", 0.88)
    better, _ = measured(tmp_path, "better", 0.91)
    sentence = r"accuracy on photos: worse 88\.00%, old \(served\) 90\.00%; the new weights are worse: use --force"
    with pytest.raises(RefusedError, match=sentence):
        list(refuse_worse(serving(config, worse), [old_card]))
    live = tuned(serving(config, old), "Classifier", weights=worse)
    with pytest.raises(RefusedError, match=sentence):
        list(refuse_worse(live, [old_card]))
    assert list(refuse_worse(serving(config, better), [old_card])) == [
        "accuracy on photos: better 91.00%, old (served) 90.00%"
    ]
    assert list(refuse_worse(serving(config, old), [old_card])) == []


def test_weights_that_cannot_be_compared_pass_with_a_note(config: Config, tmp_path: Path) -> None:
    """Different test data, or a card that only the cluster's nodes can read, refuses nothing."""
    _, old_card = measured(tmp_path, "old", 0.9)
    other, _ = measured(tmp_path, "other", 0.1, fingerprint="e" * 64)
    assert "have no test data in common" in next(refuse_worse(serving(config, other), [old_card]))
    gone = other | {"source": str(tmp_path / "gone.safetensors")}
    assert "not compared with the served model" in next(refuse_worse(serving(config, gone), [old_card]))
