"""The responses that the smoke test of `serve-app deploy` accepts."""

from __future__ import annotations

import math
from typing import Any

import httpx2
import pytest

from serve_app.model_card import ImageTransform
from serve_app.preprocessing.transform import preprocess
from serve_app.release import smoke
from serve_app.release.rollout import DeployError
from serve_app.release.serve_config import Config


def response_with(scores: list[Any], version: str = "v", status: int = 200) -> httpx2.Response:
    predictions = [{"label": "cat", "class_id": 0, "score": score} for score in scores]
    body = {"model": {"name": "m", "version": version, "sha256": "a"}, "results": [{"predictions": predictions}]}
    return httpx2.Response(status, json=body, headers={"X-Model-Version": "v"})


@pytest.mark.parametrize(
    ("response", "args", "sentence"),
    [
        (response_with([0.9, 0.05]), {}, None),
        (response_with([0.9, 0.05]), {"weights": {"source": "x", "sha256": "a"}}, None),
        (
            response_with([0.9, 0.05]),
            {"weights": {"source": "x", "sha256": "b"}},
            "weights a answered, but b are configured",
        ),
        (response_with([0.9], version="w"), {}, "X-Model-Version is v, the body's version w"),
        (response_with([None, None]), {}, "not finite"),  # JSON has null for NaN
        (response_with([0.2, 0.9]), {}, "not probabilities"),
        (response_with([0.9, 0.9]), {}, "not probabilities"),
        (response_with([0.4, 0.3, 0.2, 0.1]), {}, "4 predictions"),
        (response_with([]), {}, "0 predictions"),
        (httpx2.Response(503, text="starting"), {}, "status 503 (starting)"),
        (httpx2.Response(200, text="<html>"), {}, "not a response of this API"),
    ],
)
def test_only_a_valid_classification_passes(response: httpx2.Response, args: Config, sentence: str | None) -> None:
    """Wrong weights, versions, scores or statuses are named in the problem."""
    problems = "; ".join(smoke.find_problems(response, {"args": args}))
    assert problems == "" if sentence is None else sentence in problems


@pytest.mark.parametrize(
    ("engine", "runtime", "sentence"),
    [
        ("cuda", "torch", "the model runs on torch, but `engine` is cuda"),
        ({"runtime": "cuda", "precision": "bf16"}, "winograd", "the model runs on winograd, but `engine` is cuda"),
        ("cuda", "cuda", None),
        ("auto", "torch", None),
    ],
)
def test_the_smoke_test_checks_the_runtime(
    monkeypatch: pytest.MonkeyPatch, engine: Any, runtime: str, sentence: str | None
) -> None:
    """A model that is to run on a GPU, and answers from the CPU, fails the deployment; else its runtime is printed."""
    variants = {"main": {"refused": None, "loading": None, "runtime": runtime}}
    status = {"variants": variants, "refused": None, "traffic": {"waiting_for": None}}
    request = httpx2.Request("GET", "http://api")
    monkeypatch.setattr(httpx2, "get", lambda *_, **__: httpx2.Response(200, json=status, request=request))
    monkeypatch.setattr(httpx2, "post", lambda *_, **__: response_with([0.9]))
    app = {"args": {"engine": engine}}
    if sentence:
        with pytest.raises(DeployError, match=sentence):
            smoke.smoke_test("http://api", app, b"", 1)
    else:
        assert smoke.smoke_test("http://api", app, b"", 1) == f"6 requests answered by v on {runtime}"


def test_the_generated_image_can_be_classified() -> None:
    """The image decodes and has contrast."""
    transform = ImageTransform(resize_px=64, crop_px=64, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = preprocess(smoke.generate_image(), transform, 10**6).pixels
    assert pixels.std() > 30
    assert math.isfinite(pixels.mean())
