"""Ask a service that has just been deployed, through its API, whether it classifies."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image

from serve_app.deploy.rollout import DeployError
from serve_app.deploy.serve_config import Config

TIMEOUT_S = 35  # above the service's own deadline
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
    url = f"{api}{(app.get('route_prefix') or '/').rstrip('/')}/v1/classify"
    versions = set()
    count = max(LEAST_REQUESTS, PER_INGRESS * ingress_replicas)
    for number in range(1, count + 1):
        try:
            # A connection each: a kept one would always lead to the same replica.
            response = httpx2.post(url, params={"top_k": TOP_K}, content=image, timeout=TIMEOUT_S)
        except httpx2.HTTPError as error:
            raise DeployError(f"smoke test, request {number} of {count} to {url}: no answer ({error})") from None
        if wrong := "; ".join(problems(response, app)):
            raise DeployError(f"smoke test, request {number} of {count} to {url}: {wrong}")
        versions.add(response.headers["x-model-version"])
    if len(versions) > 1:
        raise DeployError(f"smoke test: {count} answers come from {len(versions)} versions, {', '.join(versions)}")
    return f"{count} of {count} requests answered by {versions.pop()}"


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
    weights = app.get("args", {}).get("weights")
    wanted = weights.get("sha256") if isinstance(weights, dict) else None
    if wanted and model["sha256"] != wanted:
        yield f"weights {model['sha256']} answer, {wanted} are configured"
    if not 1 <= len(scores) <= TOP_K:
        yield f"{len(scores)} predictions, {TOP_K} were asked for"
    elif not all(map(math.isfinite, scores)):
        yield f"scores are not finite: {scores}"
    elif scores != sorted(scores, reverse=True) or scores[-1] < 0 or sum(scores) > 1 + 1e-4 or scores[0] <= 0:
        yield f"scores are no probabilities, best first: {scores}"
