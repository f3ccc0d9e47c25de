"""Heads of an API in this process: teach them, use them, and read what a request says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
from starlette.testclient import TestClient

from serve_app.config import LimitsConfig, WeightsConfig
from serve_app.heads_config import HeadsConfig
from tests.support.local_service import LocalService
from tests.support.taught_photos import as_form, photos_of

COLORS = ("blue", "green", "red")
PHOTOS = photos_of(*COLORS, count=4)


def service_with_heads(weights: WeightsConfig, folder: Path) -> LocalService:
    """Return a service that keeps heads below a folder."""
    service = LocalService(weights, LimitsConfig(max_image_bytes=200_000, max_body_bytes=1_000_000, deadline_s=600))
    service.keep_heads(HeadsConfig(folder=str(folder / "heads")))
    return service


def limit(service: LocalService, **limits: Any) -> None:
    """Change the settings of heads."""
    assert service.heads
    service.keep_heads(service.heads.config.model_copy(update=limits))


def teach(
    http: TestClient, name: str = "colors", photos: dict[str, list[bytes]] = PHOTOS, **options: Any
) -> httpx2.Response:
    """Teach a head by form."""
    return http.put(f"/v1/heads/{name}", files=as_form(photos), **options)


def best(http: TestClient, photo: bytes, head: str = "colors") -> str:
    """Return the best class that a head gives a photo."""
    answer = http.post("/v1/classify", params={"head": head}, content=photo).json()
    label: str = answer["results"][0]["heads"][head]["predictions"][0]["label"]
    return label


def problem(response: httpx2.Response) -> tuple[int, str]:
    """Return status and code of an error."""
    return response.status_code, response.json()["code"]
