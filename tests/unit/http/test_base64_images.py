"""Base64 as clients write it, in JSON of /v1/classify and of /v2."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from serve_app.errors import MalformedRequestError
from serve_app.http.base64_images import decode_base64
from tests.support.photos import make_photo

PHOTO = make_photo()
PLAIN = base64.b64encode(PHOTO).decode()
URL_SAFE = base64.urlsafe_b64encode(PHOTO).decode()
FORMS: dict[str, Callable[[bytes], str]] = {
    "plain": lambda data: base64.b64encode(data).decode(),
    "data URI": lambda data: "data:image/jpeg;base64," + base64.b64encode(data).decode(),
    "data URI without type": lambda data: "data:;base64," + base64.b64encode(data).decode(),
    "data URI with parameters": lambda data: "DATA:image/png;name=a;BASE64," + base64.b64encode(data).decode(),
    "escaped data URI": lambda data: (
        "data:image/jpeg;base64," + base64.b64encode(data).decode().replace("+", "%2B").replace("=", "%3d")
    ),
    "data URI in lines": lambda data: "data:image/jpeg;base64,\n" + base64.encodebytes(data).decode(),
    "MIME": lambda data: base64.encodebytes(data).decode(),
    "MIME with CR LF": lambda data: base64.encodebytes(data).decode().replace("\n", "\r\n"),
    "indented": lambda data: textwrap.indent(base64.encodebytes(data).decode(), "\t  "),
    "trailing newline": lambda data: base64.b64encode(data).decode() + "\n",
    "URL-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "URL-safe, unpadded": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    "unpadded": lambda data: base64.b64encode(data).decode().rstrip("="),
    "padded in any case": lambda data: base64.b64encode(data).decode().rstrip("=") + "==",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_bytes(form: str) -> None:
    for size in range(7):
        data = bytes(range(256))[255 - size :]
        assert decode_base64(FORMS[form](data)) == data
    assert decode_base64(FORMS[form](PHOTO)) == PHOTO


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_classified(shared_http: TestClient, form: str) -> None:
    text = FORMS[form](PHOTO)
    answer = shared_http.post("/v1/classify", json={"inputs": [{"b64": text}]})
    assert answer.status_code == 200, answer.text
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}
    infer = shared_http.post("/v2/models/resnet18/infer", json={"inputs": [tensor]})
    assert infer.status_code == 200, infer.text
    assert infer.json()["outputs"][0]["data"] == [p["label"] for p in answer.json()["results"][0]["predictions"]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not base64!", "b64: "),
        ("a", "b64: "),
        ("aaaaa", "b64: "),
        ("====", "Excess padding"),
        ("aa=====", "Excess padding"),
        ("aa==aa==", "b64: "),
        ("\u0660aaa", "b64: '\u0660' is not a digit of base64"),
        ("é" * 100_000, "b64: 'é' is not a digit of base64"),
        ("data:image/jpeg,%FF%D8", "the data URI is not base64; begin it with `data:image/jpeg;base64,`"),
        ("data:image/jpeg;base64;x,aaaa", "the data URI is not base64"),
        ("data:image/jpeg;base64", "b64: "),
        ("data:" + "x" * 5000 + ";base64,aaaa", "b64: "),
        ("data:image/jpeg;base64,data:image/jpeg;base64,aaaa", "b64: "),
        ("aa\0a", "b64: "),
    ],
)
def test_what_is_no_base64_says_so(text: str, says: str) -> None:
    error = decode_base64(text)
    assert isinstance(error, MalformedRequestError)
    assert says in str(error)
    assert len(str(error)) < 200
