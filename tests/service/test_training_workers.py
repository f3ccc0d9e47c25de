"""`serve-app train --workers 2` on Ray Train."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

from serve_app.config import WeightsConfig
from serve_app.inference.card import load_card
from serve_app.inference.weights import sha256
from serve_app.training.evaluate import evaluate
from tests.support.photos import encode, make_picture

OPTIONS = "--weights scratch --schedule 24:4 --store-px 24 --serve-px 24 --batch 8 --peak-lr 0.05"


def test_two_workers_learn_what_one_does(tmp_path: Path) -> None:
    """Two workers with half of every batch each learn the classes, as one does in tests/unit/training."""
    for label, tint in (("green", (0, 200, 0)), ("red", (200, 0, 0))):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(40):
            picture = Image.blend(make_picture(32, 32, i), Image.new("RGB", (32, 32), tint), 0.5)
            (tmp_path / "data" / label / f"{i}.png").write_bytes(encode(picture, "PNG"))
    model = tmp_path / "out" / "model.safetensors"
    command = [sys.executable, "-m", "serve_app", "train", str(tmp_path / "data"), str(model.parent)]
    subprocess.run([*command, *OPTIONS.split(), "--workers", "2"], check=True, timeout=300)
    spec = WeightsConfig(source=str(model), sha256=sha256(model))
    assert load_card(spec).training["recipe"]["workers"] == 2
    assert evaluate(spec, tmp_path / "data")[0]["top1"] > 0.9
