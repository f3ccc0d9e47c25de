"""Send test requests to a service that has just been deployed."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx2
from PIL import Image

from serve_app.release.rollout import DeployError
from serve_app.release.serve_config import Config, configured_runtime, configured_weights, user_config
from serve_app.routing.traffic_split import MAIN

TIMEOUT_S = 35  # above the service's own limits.deadline_s
SETTLE_S = 120
POLL_S = 0.5
TOP_K = 3
MIN_REQUESTS = 6
REQUESTS_PER_INGRESS = 3  # connections are spread evenly, so each ingress replica gets some of them


def generate_image() -> bytes:
    """Return a JPEG of color gradients, for which every model returns finite scores."""
    buffer = io.BytesIO()
    gradient = Image.linear_gradient("L")
    Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180))).save(buffer, "JPEG")
    return buffer.getvalue()


def smoke_test(api: str, app: Config, image: bytes, ingress_replicas: int) -> str:
    """Classify an image with each variant, often enough that every ingress replica probably answers once.

    Returns:
        One sentence with the number of requests, and the versions and runtimes that answered.

    Raises:
        DeployError: A response is missing or is not a valid classification, or the model runs on another runtime than
            the configured one.
    """
    base = f"{api}{(app.get('route_prefix') or '/').rstrip('/')}"
    runtimes = wait_until_settled(base)
    wanted, found = configured_runtime(app), runtimes.get(MAIN)
    if found and wanted not in ("auto", found):
        raise DeployError(f"smoke test: the model runs on {found}, but `engine` is {wanted}: read its replica's log")
    variants = user_config(app, "Ingress").get("traffic") or {}
    versions = set()
    count = max(MIN_REQUESTS, REQUESTS_PER_INGRESS * ingress_replicas)
    for variant_header in [{"X-Model": name} for name in variants] or [{}]:
        for number in range(1, count + 1):
            where = f"smoke test, request {number} of {count} to {base} {' '.join(variant_header.values())}".rstrip()
            try:
                # A new connection each time: a connection that is kept leads to one replica only.
                url, headers = f"{base}/v1/classify?top_k={TOP_K}", variant_header | authorization()
                response = httpx2.post(url, headers=headers, content=image, timeout=TIMEOUT_S)
            except httpx2.HTTPError as error:
                raise DeployError(f"{where}: no response ({error})") from None
            if problems := "; ".join(find_problems(response, app)):
                raise DeployError(f"{where}: {problems}")
            versions.add(response.headers["x-model-version"])
    if len(versions) > max(1, len(variants)):
        raise DeployError(f"smoke test: {count} responses come from {len(versions)} versions, {', '.join(versions)}")
    on = f" on {', '.join(names)}" if (names := sorted(set(runtimes.values()))) else ""
    return f"{count * max(1, len(variants))} requests answered by {', '.join(sorted(versions))}{on}"


def authorization() -> dict[str, str]:
    """Return the header that carries the API key of the environment variable ``API_KEY``; empty without one."""
    key = os.environ.get("API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def wait_until_settled(base: str) -> dict[str, str]:
    """Wait until new weights are loaded and the configured traffic split is in effect.

    Returns:
        The runtime of each variant that has answered.

    Raises:
        DeployError: A replica refused a setting, or the wait takes longer than ``SETTLE_S``.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        try:
            response = httpx2.get(f"{base}/v1/status", headers=authorization(), timeout=TIMEOUT_S)
            status: dict[str, Any] = response.raise_for_status().json()
            variants: dict[str, Any] = status["variants"]
        except (httpx2.HTTPError, ValueError, LookupError) as error:
            raise DeployError(f"{base}/v1/status does not answer ({error})") from None
        refused = {"Ingress": status["refused"]} | {name: variant["refused"] for name, variant in variants.items()}
        for name, reason in refused.items():
            if reason:
                raise DeployError(f"{name} refused its new settings: {reason}")
        pending = [f"{name} loads {variant['loading']}" for name, variant in variants.items() if variant["loading"]]
        pending += [status["traffic"]["waiting_for"]] if status["traffic"]["waiting_for"] else []
        if not pending:
            return {name: variant["runtime"] for name, variant in variants.items() if variant.get("runtime")}
        if time.monotonic() > deadline:
            raise DeployError(f"not live within {SETTLE_S} s: {'; '.join(pending)}")
        time.sleep(POLL_S)


def find_problems(response: httpx2.Response, app: Config) -> Iterator[str]:
    """Yield one sentence per defect of a response to ``POST /v1/classify``."""
    if response.status_code != 200:
        yield f"status {response.status_code} ({' '.join(response.text.split()):.200})"
        return
    try:
        body: dict[str, Any] = response.json()
        model, predictions = body["model"], body["results"][0]["predictions"]
        # JSON has no NaN; the API sends null.
        scores = [math.nan if (score := entry["score"]) is None else float(score) for entry in predictions]
    except (ValueError, LookupError, TypeError):
        yield f"the body is not a response of this API ({' '.join(response.text.split()):.200})"
        return
    if response.headers.get("x-model-version") != model["version"]:
        yield f"X-Model-Version is {response.headers.get('x-model-version')}, the body's version {model['version']}"
    weights = configured_weights(app)
    expected = weights.get("sha256") if isinstance(weights, dict) else None
    if expected and model["sha256"] != expected:
        yield f"weights {model['sha256']} answered, but {expected} are configured"
    if not 1 <= len(scores) <= TOP_K:
        yield f"{len(scores)} predictions instead of {TOP_K}"
    elif not all(map(math.isfinite, scores)):
        yield f"scores are not finite: {scores}"
    elif scores != sorted(scores, reverse=True) or scores[-1] < 0 or sum(scores) > 1 + 1e-4 or scores[0] <= 0:
        yield f"scores are not probabilities in descending order: {scores}"
