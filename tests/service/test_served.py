"""The graph on real Ray Serve, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from serve_app.inference.torch_model import load_model
from tests.support.photos import STORED, encode, make_photo, make_picture
from tests.support.polling import wait_for
from tests.support.running import Running
from tests.support.weights import tiny

JPEG = {"content-type": "image/jpeg"}


@pytest.fixture(scope="module")
def http(running: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.api, timeout=60) as client:
        yield client


def scores(result: dict[str, Any]) -> np.ndarray:
    """Scores by class id."""
    return np.array([p["score"] for p in sorted(result["predictions"], key=lambda p: p["class_id"])])


def form(*photos: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (f"{i}.jpg", photo)) for i, photo in enumerate(photos)]


def test_ten_labeled_scores(http: httpx2.Client) -> None:
    """The README's first request gets ten labels with scores, ids and timings."""
    response = http.post("/v1/classify", content=make_photo(), headers=JPEG)
    body = response.json()
    assert response.status_code == 200
    assert len(body["results"][0]["predictions"]) == 10
    assert body["id"] == response.headers["x-request-id"]
    assert len(response.headers.get_list("x-request-id")) == 1
    assert response.headers["x-model-version"] == body["model"]["version"]
    assert all(phase in response.headers["server-timing"] for phase in ("decode", "queue", "model", "total"))


def test_equals_plain_torchvision(http: httpx2.Client) -> None:
    """Results equal torchvision's transforms and model: same class, scores within 1e-3."""
    model, card = load_model(tiny())
    for seed, size in enumerate([(640, 480), (480, 640), (333, 251), (32, 32), (1600, 1200)]):
        picture = make_picture(*size, seed)
        resized = tv.resize(picture, [card.transform.resize_px], antialias=True)
        cropped = tv.center_crop(resized, [card.transform.crop_px])
        normalized = tv.normalize(tv.to_tensor(cropped), card.transform.mean, card.transform.std)
        with torch.inference_mode():
            expected = (model(normalized[None]) / card.temperature).softmax(1)[0].numpy()
        (result,) = http.post("/v1/classify", content=encode(picture, "PNG")).json()["results"]
        assert np.abs(scores(result) - expected).max() < 1e-3
        assert result["predictions"][0]["class_id"] == expected.argmax()


def test_eight_orientations_agree(http: httpx2.Client) -> None:
    """One photo stored in all eight EXIF orientations gets the same scores within 1e-2."""
    upright = make_picture(640, 480)
    photos = []
    for orientation, how in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        photos.append(encode(upright.transpose(how) if how is not None else upright, "PNG", exif=exif))
    results = http.post("/v1/classify", files=form(*photos)).json()["results"]
    assert [result["image"]["orientation"] for result in results] == list(STORED)
    for result in results[1:]:
        assert np.abs(scores(result) - scores(results[0])).max() < 1e-2


def test_a_batch_equals_singles(http: httpx2.Client) -> None:
    """Sixteen photos get the same scores together and in single requests, within 1e-4."""
    photos = [make_photo(seed) for seed in range(16)]
    together = http.post("/v1/classify", files=form(*photos)).json()["results"]
    assert max(result["batch_size"] for result in together) > 1
    for result, photo in zip(together, photos, strict=True):
        (single,) = http.post("/v1/classify", content=photo).json()["results"]
        assert np.abs(scores(result) - scores(single)).max() < 1e-4


BROKEN = {
    3: (b"", "invalid_image"),
    17: (b"this is text", "unsupported_image"),
    30: (make_photo()[:4000], "invalid_image"),
    42: (b"\x89PNG\r\n\x1a\n" + bytes(100), "invalid_image"),
    63: (b"%PDF-1.7", "unsupported_image"),
}


def sixty_four() -> list[bytes]:
    return [BROKEN[i][0] if i in BROKEN else make_photo(i) for i in range(64)]


def test_five_broken_of_sixty_four(http: httpx2.Client) -> None:
    """A request with five broken files gets HTTP 200, 59 results and 5 errors with a reason, in order."""
    response = http.post("/v1/classify", files=form(*sixty_four()))
    results = response.json()["results"]
    assert response.status_code == 200
    assert response.json()["summary"] == {"ok": 59, "failed": 5}
    assert [result["id"] for result in results] == [f"{i}.jpg" for i in range(64)]
    assert {i: r["error"]["code"] for i, r in enumerate(results) if r["status"] == "error"} == {
        i: code for i, (_, code) in BROKEN.items()
    }
    assert all(result["error"]["detail"] for result in results if result["status"] == "error")


def test_results_stream_as_they_finish(http: httpx2.Client) -> None:
    """JSONL lines come one by one: the first while other images of the request are still in flight."""
    photos, lines, in_flight = sixty_four(), [], None
    photos[48:63] = [make_photo(1, 2400, 1800)] * 15  # keep the stages busy while the first line is read
    accept = {"accept": "application/jsonl"}
    with http.stream("POST", "/v1/classify", files=form(*photos), headers=accept) as response:
        for line in response.iter_lines():
            lines.append(json.loads(line))
            in_flight = http.get("/v1/status").json()["images"]["in_flight"] if in_flight is None else in_flight
    assert in_flight
    assert sorted(line["index"] for line in lines[:-1]) == list(range(64))
    assert lines[-1]["summary"] == {"ok": 59, "failed": 5}


@pytest.mark.parametrize(
    ("send", "status", "code"),
    [
        ({"content": b"text"}, 415, "unsupported_image"),
        ({"content": make_photo()[:2000]}, 422, "invalid_image"),
        ({"content": bytes(21 * 2**20)}, 413, "too_large"),
        ({"content": make_photo(), "params": {"top_k": -1}}, 422, "invalid_parameter"),
        ({"files": form(*[b"x"] * 65)}, 413, "too_large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_cross_the_processes(http: httpx2.Client, send: dict[str, Any], status: int, code: str) -> None:
    """An error raised in another replica reaches the client with its own status and code."""
    response = http.post("/v1/classify", **send)
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_large_images_pass_between_the_stages(http: httpx2.Client) -> None:
    """An upload of 17 MB passes between the stages, whose gRPC cap is 4 MiB by default."""
    photo = encode(make_picture(2400, 2400), "BMP")
    assert len(photo) > 16e6
    response = http.post("/v1/classify", content=photo)
    assert response.status_code == 200
    assert response.json()["results"][0]["image"]["format"] == "bmp"


def test_heat_maps_add_up(http: httpx2.Client) -> None:
    """The mean of a class's heat map plus its bias is the class's logit, for every class."""
    for class_id in range(10):
        query = f"/v1/classify?explain=cam&explain_class={class_id}"
        (result,) = http.post(query, content=make_photo()).json()["results"]
        explanation = result["explanation"]
        assert abs(np.mean(explanation["values"]) + explanation["bias"] - explanation["logit"]) < 1e-3


async def test_concurrent_clients_share_batches(running: Running) -> None:
    """Single images of 64 clients are classified in batches of more than 4 on average."""
    photos = [make_photo(seed, 500, 375) for seed in range(8)]

    async def client(number: int, http: httpx2.AsyncClient) -> list[int]:
        sizes = []
        for i in range(4):
            response = await http.post("/v1/classify", content=photos[(number + i) % 8], headers=JPEG)
            assert response.status_code == 200, response.text
            sizes.append(response.json()["results"][0]["batch_size"])
        return sizes

    limits = httpx2.Limits(max_connections=64)
    async with httpx2.AsyncClient(base_url=running.api, timeout=60, limits=limits) as http:
        sizes = [size for sizes in await asyncio.gather(*(client(n, http) for n in range(64))) for size in sizes]
    # An image in a batch of n stands for a n-th of that batch.
    assert len(sizes) / sum(1 / size for size in sizes) > 4


def test_the_batchers_metric_counts_batches(http: httpx2.Client, running: Running) -> None:
    """Prometheus' endpoint exports the batcher's histograms, and /v1/status the mean batch size."""
    http.post("/v1/classify", files=form(*[make_photo(i) for i in range(16)]))
    assert http.get("/v1/status").json()["mean_batch_size"] > 1
    (node,) = httpx2.get(f"{running.dashboard}/nodes?view=summary").json()["data"]["summary"]
    port = node["raylet"]["metricsExportPort"]
    names = {f"ray_classifier_{name}_count" for name in ("batch_size", "queue_ms", "model_ms")}

    def exported() -> bool:
        text = httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        return all(name in text for name in names)

    wait_for(exported, what=f"the export of {names}")


def test_readiness_and_description(http: httpx2.Client) -> None:
    """A ready service describes its model, and reports its stages and the Teacher as healthy."""
    assert http.get("/readyz").json()["status"] == "ready"
    assert http.get("/v1/models").json()["models"][0]["classes"] == 10
    deployments = http.get("/v1/status").json()["deployments"]
    assert {name: deployment["status"] for name, deployment in deployments.items()} == {
        "Ingress": "HEALTHY",
        "Preprocessor": "HEALTHY",
        "Classifier": "HEALTHY",
        "Teacher": "HEALTHY",
    }


def test_api_docs_open(http: httpx2.Client) -> None:
    """/docs and the OpenAPI document are served."""
    assert http.get("/docs").status_code == 200
    assert "/v1/classify" in http.get("/openapi.json").json()["paths"]
