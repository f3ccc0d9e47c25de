"""Content types as clients send them: what is missing, too general or wrong is decided by the content."""

from __future__ import annotations

import base64
import json

import pytest
from starlette.testclient import TestClient

from tests.support.api import is_problem
from tests.support.photos import encode, make_photo, make_picture

PHOTO = make_photo(0, 64, 48)
JSON = json.dumps({"inputs": [{"id": "a", "b64": base64.b64encode(PHOTO).decode()}]}).encode()
GENERAL = ("", "*/*", "application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=utf-8", ";;;")
IMAGES = {
    "jpeg": PHOTO,
    "png": encode(make_picture(64, 48), "PNG"),
    "bmp": encode(make_picture(64, 48), "BMP"),
    "tiff": encode(make_picture(64, 48), "TIFF"),
    "gif": encode(make_picture(64, 48), "GIF"),
    "webp": encode(make_picture(64, 48), "WEBP"),
}


@pytest.mark.parametrize(
    "kind",
    [*GENERAL, None, "application/octet-stream", "binary/octet-stream", "Binary/Octet-Stream; x=y", "image/*"],
)
@pytest.mark.parametrize("path", ["/v1/classify", "/predict"])
def test_an_image_of_any_general_type(shared_http: TestClient, path: str, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    for image in IMAGES.values():
        assert shared_http.post(path, content=image, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "kind", ["image/jpg", "image/jpeg", "image/png", "image/svg+xml", "image/", "IMAGE/X-WHATEVER"]
)
def test_an_image_of_a_wrong_image_type(shared_http: TestClient, kind: str) -> None:
    """The format is that of the content."""
    for name, image in IMAGES.items():
        (result,) = shared_http.post("/v1/classify", content=image, headers={"content-type": kind}).json()["results"]
        assert result["image"]["format"] == name


@pytest.mark.parametrize("kind", [*GENERAL, None, "application/json", "text/json", "application/vnd.api+json"])
def test_json_of_any_general_type(shared_http: TestClient, kind: str | None) -> None:
    """`curl -d` sends JSON as a form."""
    headers = {} if kind is None else {"content-type": kind}
    for body in (JSON, b"\r\n\t " + JSON, b"\xef\xbb\xbf" + JSON):
        answer = shared_http.post("/v1/classify", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"][0]["id"] == "a"


@pytest.mark.parametrize("kind", [*GENERAL, None, "application/json", "text/json"])
def test_feedback_of_any_general_type(shared_http: TestClient, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    vote = b'{"request_id": "req_1", "correct": true}'
    assert shared_http.post("/v1/feedback", content=vote, headers=headers).status_code == 204


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/zip", "application/xml", "multipart/mixed", "json", "x" * 5000]
)
def test_a_type_that_says_something_else_is_refused(shared_http: TestClient, kind: str) -> None:
    for path in ("/v1/classify", "/predict", "/v1/feedback"):
        refused = shared_http.post(path, content=PHOTO, headers={"content-type": kind})
        assert is_problem(refused, 415, "unsupported_image")
        assert "application/json" in refused.json()["detail"]
        assert len(refused.json()["detail"]) < 250


@pytest.mark.parametrize("kind", [*GENERAL, None])
def test_what_is_neither_image_nor_json_is_said_to_be_no_image(shared_http: TestClient, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert is_problem(shared_http.post("/v1/classify", content=b"a=1&b=2", headers=headers), 415, "unsupported_image")
    assert is_problem(shared_http.post("/v1/classify", content=b"", headers=headers), 400, "malformed")
    assert is_problem(shared_http.post("/v1/classify", content=b"{", headers=headers), 400, "malformed")


def test_names_with_colons_and_spaces_come_back(shared_http: TestClient) -> None:
    name = "a: day.jpg"
    form = shared_http.post("/v1/classify", files={"images": (name, PHOTO)})
    plain = shared_http.post("/v1/classify", json={"inputs": [{"id": name, "b64": base64.b64encode(PHOTO).decode()}]})
    assert form.json()["results"][0]["id"] == plain.json()["results"][0]["id"] == name
