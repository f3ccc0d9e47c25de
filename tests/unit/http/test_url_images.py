"""Images by URL in JSON: off by default, from allowed hosts only, with the limits and the counts of uploads."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from serve_app.config import AdmissionConfig, KeysConfig, LimitsConfig
from serve_app.errors import NotReadyError, ServiceError, UnfetchableImageError
from serve_app.http.auth import ApiKeys, create_key
from serve_app.http.url_images import MAX_FETCHES
from serve_app.images_by_url_config import ImagesByUrlConfig
from serve_app.messages import RemoteImage
from tests.support.api import is_problem, post
from tests.support.local_service import LocalService
from tests.support.photos import make_photo

PHOTO = make_photo()
B64 = base64.b64encode(PHOTO).decode()
URL = "https://photos.example/a.jpg"
ON = ImagesByUrlConfig(allowed_hosts=("photos.example", "*.cdn.example", "http://intranet.example:8080"))
INFER = "/v2/models/resnet18/infer"


class FakeFetcher:
    """Fetches what a test says.

    Attributes:
        found: A file, or an error, by URL.
        images: What was asked for.
        most: Images that were fetched at the same time.
        waiting: Each fetch waits until it is set; None for no wait.
    """

    def __init__(self) -> None:
        self.found: dict[str, bytes | Exception] = {URL: PHOTO}
        self.images: list[RemoteImage] = []
        self.most = self._in_flight = 0
        self.waiting: asyncio.Event | None = None

    async def fetch(self, image: RemoteImage) -> bytes | ServiceError:
        self.images.append(image)
        self._in_flight += 1
        self.most = max(self.most, self._in_flight)
        try:
            await (self.waiting.wait() if self.waiting else asyncio.sleep(0))
        finally:
            self._in_flight -= 1
        url = image.url
        found = self.found.get(f"{url.scheme}://{url.authority}{url.target}", UnfetchableImageError("nothing"))
        if isinstance(found, Exception) and not isinstance(found, UnfetchableImageError):
            raise found
        return found


@pytest.fixture
def fetcher(service: LocalService) -> FakeFetcher:
    """Images by URL are switched on."""
    service.configure(images_by_url=ON)
    service.client.fetcher = FakeFetcher()
    return service.client.fetcher


def send(http: TestClient, *urls: str, **options: Any) -> Any:
    return http.post("/v1/classify", json={"inputs": [{"url": url} for url in urls]}, **options)


def tensor(*elements: str) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "shape": [len(elements)], "datatype": "BYTES", "data": list(elements)}]}


def test_they_are_off_by_default(http: TestClient, service: LocalService) -> None:
    """The error says how to switch them on; nothing is fetched."""
    service.client.fetcher = fetcher = FakeFetcher()
    refused = send(http, URL)
    assert is_problem(refused, 403, "forbidden_source")
    assert "images by URL are switched off" in refused.json()["detail"]
    assert "`images_by_url: {allowed_hosts: [photos.example]}` in the Ingress's user_config" in refused.json()["detail"]
    infer = http.post(INFER, json=tensor(URL))
    assert infer.status_code == http.post("/", json={"inputs": URL}).status_code == 403
    assert infer.json()["error"].startswith("image 0: url on https://photos.example: images by URL are switched off")
    assert fetcher.images == []


def test_an_image_by_url_is_classified_like_an_upload(http: TestClient, fetcher: FakeFetcher) -> None:
    (uploaded,) = post(http, PHOTO).json()["results"]
    response = send(http, URL)
    assert response.status_code == 200, response.text
    (result,) = response.json()["results"]
    assert (result["predictions"], result["image"]) == (uploaded["predictions"], uploaded["image"])
    assert list(result["timings_ms"]) == ["fetch", "decode", "queue", "model"]
    infer = http.post(INFER, json=tensor(URL))
    assert infer.json()["outputs"][0]["data"] == [prediction["label"] for prediction in uploaded["predictions"]]
    pairs = [[prediction["label"], prediction["score"]] for prediction in uploaded["predictions"]]
    assert http.post("/predict", json={"inputs": [{"url": URL}]}).json() == [pairs]
    pipeline = http.post("/", json={"inputs": URL}).json()
    assert [[each["label"], each["score"]] for each in pipeline] == pairs[:5]
    assert len(fetcher.images) == 4


def test_the_preprocessor_gets_settings_and_deadline(
    http: TestClient, fetcher: FakeFetcher, service: LocalService
) -> None:
    send(http, URL, headers={"X-Request-ID": "mine", "X-Request-Timeout-Ms": "5000"})
    (image,) = fetcher.images
    assert (image.config, image.limits) == (ON, service.config.limits)
    assert (image.context.request_id, image.context.index) == ("mine", 0)
    assert 0 < image.context.deadline.left_s() < 5


@pytest.mark.parametrize(
    "url",
    ["https://evil.example/a.jpg", "http://photos.example/a.jpg", "https://photos.example:8443/", "https://cdn.example/",
     "https://photos.example.evil.example/", "http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:8265/",
     "http://localhost:8000/", "https://intranet.example:8080/", "http://intranet.example/"],
)  # fmt: skip
def test_other_hosts_are_refused(http: TestClient, fetcher: FakeFetcher, url: str) -> None:
    refused = send(http, url)
    assert is_problem(refused, 403, "forbidden_source")
    assert "is not in `images_by_url.allowed_hosts`" in refused.json()["detail"]
    assert http.post(INFER, json=tensor(url)).status_code == 403
    assert http.post("/", json={"inputs": url}).status_code == 403
    assert fetcher.images == []


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://photos.example/a", "gopher://photos.example/", "https://photos.example@evil.example/",
     "https://photos.example\\@evil.example/", "http://2130706433/", "http://0x7f.1/", "http://[::1]/", "/etc/passwd",
     "https://photos.example./", "https://photos.example/\r\nHost: evil.example", "", "x" * 5000],
)  # fmt: skip
def test_what_is_no_plain_url_is_refused(http: TestClient, fetcher: FakeFetcher, url: str) -> None:
    refused = send(http, url)
    assert is_problem(refused, 400, "malformed")
    assert refused.json()["detail"].startswith("url '")
    assert len(refused.text) < 600
    assert http.post(INFER, json=tensor(url)).status_code in (400, 415, 422)  # text without a colon is base64
    assert fetcher.images == []


def test_each_image_has_its_own_result(http: TestClient, fetcher: FakeFetcher) -> None:
    """A file, a URL, a data URI, and URLs that fail, in one request."""
    inputs = [
        {"id": "file", "b64": B64},
        {"id": "url", "url": URL, "b64": None},
        {"id": "data", "url": f"data:image/jpeg;base64,{B64}"},
        {"id": "missing", "url": "https://photos.example/missing.jpg"},
        {"id": "evil", "url": "https://evil.example/"},
        {"id": "broken", "url": "https://photos.example/broken.jpg"},
    ]
    fetcher.found["https://photos.example/broken.jpg"] = PHOTO[:500]
    body = http.post("/v1/classify", json={"inputs": inputs})
    results = body.json()["results"]
    assert [result["id"] for result in results] == [each["id"] for each in inputs]
    codes = [result["error"]["code"] if "error" in result else result["status"] for result in results]
    assert codes == ["ok", "ok", "ok", "unfetchable_image", "forbidden_source", "invalid_image"]
    assert body.json()["summary"] == {"ok": 3, "failed": 3}
    assert {part.split(";")[0] for part in body.headers["server-timing"].split(", ")} == {
        "fetch", "decode", "queue", "model", "total",
    }  # fmt: skip
    assert set(http.get("/v1/status").json()["timings_ms"]) == {"fetch", "decode", "queue", "model"}
    lines = http.post("/v1/classify", json={"inputs": inputs}, headers={"Accept": "application/jsonl"}).text
    assert lines.count('"status":"ok"') == 3


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ({}, "send the image as `b64` or its `url`"),
        ({"b64": None, "url": None}, "send the image as `b64` or its `url`"),
        ({"b64": B64, "url": URL}, "not both"),
        ({"url": 7}, "inputs.0.url"),
        ({"b64": URL}, "b64: this is a URL; send it as `url`"),
        ({"b64": "file:///etc/passwd"}, "b64: this is a URL; send it as `url`"),
        ({"url": "data:image/jpeg,%FF%D8"}, "the data URI is not base64"),
        ({"url": "data:image/jpeg;base64"}, "b64: "),
    ],
)
def test_an_input_is_a_file_or_a_url(http: TestClient, fetcher: FakeFetcher, image: dict[str, Any], says: str) -> None:
    refused = http.post("/v1/classify", json={"inputs": [image]})
    assert is_problem(refused, 400, "malformed")
    assert says in refused.json()["detail"]
    assert fetcher.images == []


def test_openapi_describes_both(http: TestClient) -> None:
    schema = http.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]["requestBody"]["content"]
    validator = jsonschema.Draft202012Validator(schema["application/json"]["schema"])
    for image in ({"b64": B64}, {"url": URL}, {"id": "a", "url": URL}):
        assert validator.is_valid({"inputs": [image]})
    for image in ({}, {"id": "a"}, {"url": 7}):
        assert not validator.is_valid({"inputs": [image]})


def test_the_limits_of_an_upload_hold(http: TestClient, fetcher: FakeFetcher, service: LocalService) -> None:
    """The number of images, and the bytes of all together: what a body may have, fetched images may have too."""
    assert is_problem(send(http, *[URL] * 9), 413, "too_large")
    assert fetcher.images == []
    service.configure(limits=LimitsConfig(max_image_bytes=200_000, max_images=8, max_body_bytes=2 * len(PHOTO)))
    results = send(http, *[URL] * 3).json()["results"]
    assert sorted(result["status"] for result in results) == ["error", "ok", "ok"]
    (failed,) = (result["error"] for result in results if "error" in result)
    assert (failed["status"], failed["code"]) == (413, "too_large")
    assert "fetched by URL" in failed["detail"]


def test_fetched_bytes_count_in_memory(http: TestClient, fetcher: FakeFetcher, service: LocalService) -> None:
    service.configure(admission=AdmissionConfig(max_buffered_bytes=1000))
    assert is_problem(send(http, URL), 503, "overloaded")
    service.configure(admission=AdmissionConfig())
    assert send(http, URL).status_code == 200
    assert http.get("/v1/status").json()["admission"]["buffered_bytes"] == 0


def test_a_key_pays_for_images_and_bytes(http: TestClient, fetcher: FakeFetcher, service: LocalService) -> None:
    key, line = create_key("alice")
    name, hashed = line.split()
    service.keys = ApiKeys(KeysConfig(hashes={name: hashed}))
    headers = {"X-API-Key": key}
    assert send(http, URL).status_code == 401
    assert fetcher.images == []
    assert send(http, URL, URL, headers=headers).status_code == 200
    used = http.get("/v1/usage", headers=headers).json()
    assert used["images"]["total"] == 2
    assert 2 * len(PHOTO) < used["bytes"]["total"] < 2 * len(PHOTO) + 300


def test_a_slow_host_is_the_deadlines_error(http: TestClient, fetcher: FakeFetcher) -> None:
    fetcher.waiting = asyncio.Event()
    refused = send(http, URL, headers={"X-Request-Timeout-Ms": "100"})
    assert is_problem(refused, 504, "deadline_exceeded")
    assert fetcher._in_flight == 0
    assert http.get("/v1/status").json()["admission"]["images"] == 0


def test_slow_hosts_keep_no_upload_waiting(http: TestClient, fetcher: FakeFetcher, service: LocalService) -> None:
    """More images wait for a slow host than the stages take at a time; uploads are classified meanwhile.

    At most ``MAX_FETCHES`` are fetched at a time.
    """
    service.configure(limits=LimitsConfig(max_images=3 * MAX_FETCHES))
    fetcher.waiting = asyncio.Event()
    statuses: list[int] = []
    slow = threading.Thread(target=lambda: statuses.append(send(http, *[URL] * 2 * MAX_FETCHES).status_code))
    slow.start()
    try:
        while len(fetcher.images) < MAX_FETCHES:
            pass
        for seed in range(5):
            assert post(http, make_photo(seed)).status_code == 200
        assert len(fetcher.images) == MAX_FETCHES
    finally:
        http.portal.call(fetcher.waiting.set)
        slow.join()
    assert statuses == [200]
    assert len(fetcher.images) == 2 * MAX_FETCHES
    assert fetcher.most == MAX_FETCHES


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotReadyError("the preprocess stage is not available"), 503, "not_ready"),
        (KeyError("a secret"), 500, "internal"),
    ],
)
def test_errors_of_the_stage(http: TestClient, fetcher: FakeFetcher, error: Exception, status: int, code: str) -> None:
    """An unexpected one stays in the log."""
    fetcher.found[URL] = error
    refused = send(http, URL)
    assert is_problem(refused, status, code)
    assert "secret" not in refused.text
