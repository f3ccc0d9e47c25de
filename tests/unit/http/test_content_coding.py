"""Compressed bodies: which codings are undone, on every path, and that no stream breaks the inflater or its bounds."""

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serve_app.errors import MalformedRequestError
from serve_app.http import content_coding
from serve_app.http.content_coding import PIECE_BYTES, Inflater
from tests.support.api import is_problem
from tests.support.local_service import LocalService
from tests.support.photos import make_photo

PHOTO = make_photo()
BODY = json.dumps({"inputs": [{"b64": base64.b64encode(PHOTO).decode()}]}).encode()
JSON = {"content-type": "application/json"}


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:500]) + gzip.compress(data[500:])


def inflate(coding: str, body: bytes, step: int = 2**30) -> bytes:
    inflater = Inflater(coding)
    pieces = [piece for at in range(0, len(body), step) for piece in inflater.feed(body[at : at + step])]
    inflater.finish()
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("step", [1, 7, 2**30])
@pytest.mark.parametrize(
    ("coding", "squeeze"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("gzip", two_members),
        ("gzip", lambda data: gzip.compress(b"") + gzip.compress(data) + gzip.compress(b"")),
        ("gzip", lambda data: gzip.compress(data) + bytes(512)),  # padded to a block, as tapes and gzip(1) do
        ("gzip", lambda data: gzip.compress(data[:9]) + bytes(3) + gzip.compress(data[9:])),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("deflate", lambda data: zlib.compress(data, 0)),
    ],
)
def test_streams_of_every_kind(coding: str, squeeze: Callable[[bytes], bytes], step: int) -> None:
    """However the bytes arrive, the body is the same."""
    assert inflate(coding, squeeze(BODY), step) == BODY


@pytest.mark.parametrize(
    ("coding", "broken", "says"),
    [
        ("gzip", b"", "ends before the end"),
        ("gzip", two_members(BODY)[:-1], "ends before the end"),
        ("gzip", two_members(BODY)[:-9], "ends before the end"),
        ("gzip", gzip.compress(BODY, mtime=0)[:10], "ends before the end"),
        ("gzip", gzip.compress(BODY) + b"x", "continues after the end"),
        ("gzip", gzip.compress(BODY) + b"\x1fx", "not valid gzip"),
        ("gzip", gzip.compress(BODY)[:-8] + bytes(8), "not valid gzip"),
        ("gzip", BODY, "not valid gzip"),
        ("deflate", zlib.compress(BODY) * 2, "continues after the end"),
        ("deflate", zlib.compress(BODY)[:-1], "ends before the end"),
        ("gzip", gzip.compress(b"") * 4097, "more than 4096 members"),
    ],
)
@pytest.mark.parametrize("step", [7, 2**30])
def test_broken_streams(coding: str, broken: bytes, says: str, step: int) -> None:
    with pytest.raises(MalformedRequestError, match=says):
        inflate(coding, broken, step)


@given(body=st.binary(max_size=60), coding=st.sampled_from(["gzip", "deflate"]), step=st.integers(1, 60))
def test_no_stream_breaks_the_inflater(body: bytes, coding: str, step: int) -> None:
    for sent in (body, gzip.compress(body)[:40], zlib.compress(body), two_members(body)):
        try:
            assert len(inflate(coding, sent, step)) <= 1000 * len(sent)
        except MalformedRequestError:
            continue


def test_a_bomb_is_inflated_piece_by_piece() -> None:
    """Only what is asked for is made: a 64 MiB bomb takes no more than a few pieces of memory."""
    bomb = gzip.compress(bytes(64 * 2**20))
    tracemalloc.start()
    pieces = Inflater("gzip").feed(bomb)
    assert sum(len(next(pieces)) for _ in range(8)) == 8 * PIECE_BYTES
    assert tracemalloc.get_traced_memory()[1] < 6 * PIECE_BYTES
    tracemalloc.stop()


@pytest.mark.parametrize("path", ["/v1/classify", "/predict"])
@pytest.mark.parametrize("coding", ["gzip", "X-GZIP", "deflate", "identity", "", "gzip, identity"])
def test_every_kind_of_body_may_be_compressed(shared_http: TestClient, path: str, coding: str) -> None:
    squeeze = {"gzip": two_members, "x-gzip": gzip.compress, "deflate": zlib.compress}.get(
        coding.lower().removesuffix(", identity"), bytes
    )
    form = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n' + PHOTO + b"\r\n--b--"
    for kind, body in (
        ("application/json", BODY),
        ("image/jpeg", PHOTO),
        ("multipart/form-data; boundary=b", form),
        ("", BODY),
    ):
        headers = {"content-type": kind, "content-encoding": coding}
        assert shared_http.post(path, content=squeeze(body), headers=headers).status_code == 200, kind


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "aws-chunked", "x" * 5000])
def test_other_codings_are_415_and_say_what_is_fine(shared_http: TestClient, coding: str) -> None:
    refused = shared_http.post("/v1/classify", content=BODY, headers=JSON | {"content-encoding": coding})
    assert is_problem(refused, 415, "unsupported_coding")
    assert refused.headers["accept-encoding"] == "gzip, deflate"
    assert "send gzip, deflate or none" in refused.json()["detail"]
    infer = shared_http.post("/v2/models/resnet18/infer", content=BODY, headers={"content-encoding": coding})
    assert (infer.status_code, infer.headers["accept-encoding"]) == (415, "gzip, deflate")


def test_two_headers_are_two_codings(shared_http: TestClient) -> None:
    headers = [("content-type", "application/json"), ("content-encoding", "gzip"), ("content-encoding", "gzip")]
    refused = shared_http.post("/v1/classify", content=gzip.compress(BODY), headers=headers)
    assert is_problem(refused, 415, "unsupported_coding")


@pytest.mark.parametrize("path", ["/v1/classify", "/predict", "/v2/models/resnet18/infer"])
@pytest.mark.parametrize("kind", ["image/jpeg", "application/json", "multipart/form-data; boundary=b"])
def test_a_body_may_not_inflate_past_the_limit(shared_http: TestClient, path: str, kind: str) -> None:
    bomb = gzip.compress(b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\n" + bytes(600_000))
    assert len(bomb) < 1000
    refused = shared_http.post(path, content=bomb, headers={"content-type": kind, "content-encoding": "gzip"})
    assert refused.status_code == 413
    assert "inflates to more than 0.5 MB" in refused.text


def test_inflated_bytes_count_in_admission(
    http: TestClient, service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four bytes of a body may become 4000 in memory: they count, and are released with the request."""
    counted = []
    feed = Inflater.feed

    def watched(self: Inflater, chunk: bytes) -> object:
        for piece in feed(self, chunk):
            counted.append(http.get("/v1/status").json()["admission"]["buffered_bytes"])
            yield piece

    monkeypatch.setattr(content_coding, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(Inflater, "feed", watched)
    packed = gzip.compress(bytes(450_000))
    http.post("/v1/classify", content=packed, headers={"content-encoding": "gzip", "content-type": "image/jpeg"})
    assert counted == [len(packed) + 100_000 * n for n in range(5)]
    assert http.get("/v1/status").json()["admission"]["buffered_bytes"] == 0
