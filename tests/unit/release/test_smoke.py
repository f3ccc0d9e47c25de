"""What the deploy command's smoke test takes for an answer."""

from __future__ import annotations

import math
from typing import Any

import httpx2
import pytest

from serve_app.model_card import ImageTransform
from serve_app.preprocessing.transform import preprocess
from serve_app.release import smoke
from serve_app.release.serve_config import Config


def answer(scores: list[Any], version: str = "v", status: int = 200) -> httpx2.Response:
    predictions = [{"label": "cat", "class_id": 0, "score": score} for score in scores]
    body = {"model": {"name": "m", "version": version, "sha256": "a"}, "results": [{"predictions": predictions}]}
    return httpx2.Response(status, json=body, headers={"X-Model-Version": "v"})


@pytest.mark.parametrize(
    ("response", "args", "sentence"),
    [
        (answer([0.9, 0.05]), {}, None),
        (answer([0.9, 0.05]), {"weights": {"source": "x", "sha256": "a"}}, None),
        (answer([0.9, 0.05]), {"weights": {"source": "x", "sha256": "b"}}, "weights a answer, b are configured"),
        (answer([0.9], version="w"), {}, "X-Model-Version is v, the answer's w"),
        (answer([None, None]), {}, "not finite"),  # NaN, as JSON has it
        (answer([0.2, 0.9]), {}, "no probabilities"),
        (answer([0.9, 0.9]), {}, "no probabilities"),
        (answer([0.4, 0.3, 0.2, 0.1]), {}, "4 predictions"),
        (answer([]), {}, "0 predictions"),
        (httpx2.Response(503, text="starting"), {}, "status 503 (starting)"),
        (httpx2.Response(200, text="<html>"), {}, "no answer of this API"),
    ],
)
def test_only_a_real_answer_passes(response: httpx2.Response, args: Config, sentence: str | None) -> None:
    found = "; ".join(smoke.problems(response, {"args": args}))
    assert found == "" if sentence is None else sentence in found


def test_the_image_made_here_is_one() -> None:
    transform = ImageTransform(resize_px=64, crop_px=64, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = preprocess(smoke.known_image(), transform, 10**6).pixels
    assert pixels.std() > 30
    assert math.isfinite(pixels.mean())
