"""Ask a service that has just been deployed, through its API, whether it classifies."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

from serve_app.release.rollout import DeployError
from serve_app.release.serve_config import Config, user_config

TIMEOUT_S = 35  # above the service's own deadline
SETTLE_S = 120
TOP_K = 3
LEAST_REQUESTS = 6
PER_INGRESS = 3  # connections are spread evenly, so each ingress replica is met


def known_image(path: Path | None = None) -> bytes:
    """The file named, else a picture made here, which every model has some opinion on.

    Raises:
        OSError: The file cannot be read.
    """
    if path is not None:
        return path.read_bytes()
    buffer = io.BytesIO()
    shades = Image.linear_gradient("L")
    Image.merge("RGB", (shades, shades.rotate(90), shades.rotate(180))).save(buffer, "JPEG")
    return buffer.getvalue()


def smoke_test(api: str, app: Config, image: bytes, ingress_replicas: int) -> str:
    """Classify the image often enough that each ingress replica is likely to have answered.

    Args:
        api: Base URL.
        app: The application's part of the config.
        image: An encoded image.
        ingress_replicas: How many there are.

    Returns:
        What was seen, in a few words.

    Raises:
        DeployError: An answer is missing or is not what a working model says.
    """
    base = f"{api}{(app.get('route_prefix') or '/').rstrip('/')}"
    settle(base)
    variants = user_config(app, "Ingress").get("traffic") or {}
    versions = set()
    count = max(LEAST_REQUESTS, PER_INGRESS * ingress_replicas)
    for chosen in [{"X-Model": name} for name in variants] or [{}]:
        for number in range(1, count + 1):
            where = f"smoke test, request {number} of {count} to {base} {' '.join(chosen.values())}".rstrip()
            try:
                # A connection each: a kept one would always lead to the same replica.
                response = httpx2.post(
                    f"{base}/v1/classify",
                    params={"top_k": TOP_K},
                    headers=chosen | authorization(),
                    content=image,
                    timeout=TIMEOUT_S,
                )
            except httpx2.HTTPError as error:
                raise DeployError(f"{where}: no answer ({error})") from None
            if wrong := "; ".join(problems(response, app)):
                raise DeployError(f"{where}: {wrong}")
            versions.add(response.headers["x-model-version"])
    if len(versions) > max(1, len(variants)):
        raise DeployError(f"smoke test: {count} answers come from {len(versions)} versions, {', '.join(versions)}")
    return f"{count * max(1, len(variants))} requests answered by {', '.join(sorted(versions))}"


def authorization() -> dict[str, str]:
    """The header with the environment's API_KEY, if it has one."""
    key = os.environ.get("API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def settle(base: str) -> None:
    """Wait until weights are loaded and traffic goes where it should.

    Raises:
        DeployError: A change was refused, or takes too long; what served before still does.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            answer = httpx2.get(f"{base}/v1/status", headers=authorization(), timeout=TIMEOUT_S)
            status: dict[str, Any] = answer.raise_for_status().json()
            variants: dict[str, Any] = status["variants"]
        except (httpx2.HTTPError, ValueError, LookupError) as error:
            raise DeployError(f"{base}/v1/status does not answer ({error})") from None
        refused = {"Ingress": status["refused"]} | {name: one["refused"] for name, one in variants.items()}
        for name, reason in refused.items():
            if reason:
                raise DeployError(f"{name}: {reason}")
        waiting = [f"{name} loads {one['loading']}" for name, one in variants.items() if one["loading"]]
        waiting += [status["traffic"]["waiting_for"]] if status["traffic"]["waiting_for"] else []
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise DeployError(f"not live within {SETTLE_S} s: {'; '.join(waiting)}")
        time.sleep(0.5)


def problems(response: httpx2.Response, app: Config) -> Iterator[str]:
    """Say what an answer has wrong."""
    if response.status_code != 200:
        yield f"status {response.status_code} ({' '.join(response.text.split()):.200})"
        return
    try:
        body: dict[str, Any] = response.json()
        model, predictions = body["model"], body["results"][0]["predictions"]
        # JSON has no NaN: null stands in its place.
        scores = [math.nan if each["score"] is None else float(each["score"]) for each in predictions]
    except (ValueError, LookupError, TypeError):
        yield f"no answer of this API ({' '.join(response.text.split()):.200})"
        return
    if response.headers.get("x-model-version") != model["version"]:
        yield f"X-Model-Version is {response.headers.get('x-model-version')}, the answer's {model['version']}"
    weights = user_config(app, "Classifier").get("weights") or app.get("args", {}).get("weights")
    wanted = weights.get("sha256") if isinstance(weights, dict) else None
    if wanted and model["sha256"] != wanted:
        yield f"weights {model['sha256']} answer, {wanted} are configured"
    if not 1 <= len(scores) <= TOP_K:
        yield f"{len(scores)} predictions, {TOP_K} were asked for"
    elif not all(map(math.isfinite, scores)):
        yield f"scores are not finite: {scores}"
    elif scores != sorted(scores, reverse=True) or scores[-1] < 0 or sum(scores) > 1 + 1e-4 or scores[0] <= 0:
        yield f"scores are no probabilities, best first: {scores}"
