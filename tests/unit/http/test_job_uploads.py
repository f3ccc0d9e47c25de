"""Uploaded zips: a truncated, oversized or hostile body is refused with its own status and leaves nothing behind."""

from __future__ import annotations

import asyncio
import hashlib
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.requests import Request
from starlette.types import Message

from serve_app.config import JobsConfig, WeightsConfig
from serve_app.errors import MalformedRequestError, SlowBodyError
from serve_app.http.app import create_app
from serve_app.http.jobs import uploads
from tests.support.local_service import LocalService
from tests.support.raw_zips import RawEntry, raw_zip
from tests.support.zips import ZIP_HEADER, entry, make_zip

FORM_HEADER = {"content-type": "multipart/form-data; boundary=x"}
DATA = b"\r\n--y\r\n-- data \r\n-"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
def http(weights: WeightsConfig, folder: Path) -> Iterator[TestClient]:
    service = LocalService(weights)
    service.configure(
        jobs=JobsConfig(folder=str(folder), max_zip_bytes=2**20, max_zip_entries=50, max_unpacked_bytes=2**25 + 2**22)
    )
    with TestClient(create_app(service)) as client:
        yield client


def form(
    disposition: str = 'form-data; name="file"; filename="a.zip"', data: bytes = DATA, end: str = "--x--"
) -> bytes:
    """A form with one part."""
    headers = f"--x\r\nX-First: 1\r\nContent-Disposition: {disposition}\r\nContent-Type: application/zip\r\n\r\n"
    return headers.encode() + data + f"\r\n{end}\r\n".encode()


async def save(path: Path, *chunks: bytes) -> tuple[str, str]:
    """Receive a form in these chunks."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    received = iter([*messages, {"type": "http.request"}])

    async def receive() -> Message:
        return next(received)

    headers = [(name.encode(), value.encode()) for name, value in FORM_HEADER.items()]
    return await uploads.save_zip(Request({"type": "http", "headers": headers}, receive), path, JobsConfig(folder="."))


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_form_is_parsed_in_chunks_of_any_size(tmp_path: Path, size: int) -> None:
    """Headers, boundaries and data may be split anywhere; file, hash and name stay the same."""
    body = form()
    saved = await save(tmp_path / "zip", *(body[start : start + size] for start in range(0, len(body), size)))
    assert saved == (hashlib.sha256(DATA).hexdigest(), "a.zip")
    assert (tmp_path / "zip").read_bytes() == DATA


async def test_truncated_form_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    """A form without its closing boundary is malformed, even if the file's own part is complete."""
    body = form()
    closing = body.rindex(b"--x--") + len(b"--x--")
    for end in range(closing):
        with pytest.raises(MalformedRequestError):
            await save(tmp_path / "zip", body[:end])
    with pytest.raises(MalformedRequestError):
        await save(tmp_path / "zip", form(end="--x"))
    await save(tmp_path / "zip", body[:closing])


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("form-data; name=file; filename=a.zip", "a.zip"),
        ('form-data; filename="b c.zip"; name="file"', "b c.zip"),
        ('form-data; name="file"; filename=""', "upload.zip"),
        ("form-data; name=\"file\"; filename*=utf-8''%E5%86%99%E7%9C%9F.zip", "写真.zip"),
        ("form-data; name=file; filename=\"?.zip\"; filename*=utf-8''%C3%A9.zip", "é.zip"),
        ("form-data; name=file; filename*=iso-8859-1'fr'%E9.zip", "é.zip"),
        ("form-data; name=file; filename*=unicode_escape''%5Cx41.zip", "\\x41.zip"),
        ('form-data; name=file; filename="=?utf-8?B?5YaZ55yfLnppcA==?="', "写真.zip"),
        ('form-data; name="file"; filename="写真.zip"', "写真.zip"),
        ('form-data; name="file"; filename="C:\\fakepath\\a.zip"', "a.zip"),
        ('form-data; name="photos[]"; filename="a.zip"', "a.zip"),
        ('form-data; filename="a.zip"', "a.zip"),
        ('form-data; name="file"', "upload.zip"),
        (f'form-data; name="file"; filename="{"n" * 300}"', "n" * 200),
    ],
)
async def test_file_name_of_a_form(tmp_path: Path, disposition: str, name: str) -> None:
    """The name is read in each way that clients write it, and bounded."""
    assert (await save(tmp_path / "zip", form(disposition)))[1] == name


async def test_header_of_a_form_is_bounded(tmp_path: Path) -> None:
    """A part header that does not end is refused before it fills the memory."""
    with pytest.raises(MalformedRequestError, match="does not parse"):
        await save(tmp_path / "zip", form(f'form-data; name="file"; filename="{"n" * 10_000}"'))


async def test_silent_client_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that stops to arrive is refused with 408."""
    monkeypatch.setattr(uploads, "IDLE_TIMEOUT_S", 0.01)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(SlowBodyError):
        await uploads.save_zip(
            Request({"type": "http", "headers": []}, receive), tmp_path / "zip", JobsConfig(folder=".")
        )


HOSTILE: dict[str, tuple[bytes, int, str]] = {
    "up": (make_zip(entry("../../etc/cron.d/x")), 422, "leads out of the zip"),
    "up inside": (make_zip(entry("a/../../x.jpg")), 422, "leads out of the zip"),
    "backslash": (make_zip(entry("..\\x.jpg")), 422, "leads out of the zip"),
    "symlink": (make_zip(entry("link.jpg", 0o777 | stat.S_IFLNK, data=b"/etc/passwd")), 422, "a link or a device"),
    "device": (make_zip(entry("null", 0o666 | stat.S_IFCHR)), 422, "a link or a device"),
    "encrypted": (make_zip(entry("a.jpg", flags=1)), 422, "encrypted"),
    "bzip2": (make_zip(entry("a.jpg", compression=zipfile.ZIP_BZIP2)), 422, "compression method 12"),
    "entries": (make_zip(*(entry(f"{n}.jpg") for n in range(60))), 413, "62 entries"),
    "long names": (make_zip(*(entry(f"{n}{'x' * 600}.jpg") for n in range(20))), 413, "directory has"),
    "bomb": (make_zip(entry("zero.bmp", data=bytes(34_000_000))), 413, "grows"),
    "large": (make_zip(*(entry(f"{n}.bmp", data=bytes(10_000_000)) for n in range(4))), 413, "bytes once unpacked"),
    "text": (b"no zip at all", 400, "not a complete zip"),
    "cut": (make_zip()[:-30], 400, "not a complete zip"),
    "nothing": (b"", 400, "not a complete zip"),
    "no files": (b"PK\5\6" + bytes(18), 400, "holds no files"),
    "hidden only": (raw_zip([RawEntry(b"__MACOSX/._a.jpg"), RawEntry(b"b\\.DS_Store")]), 400, "holds no files"),
    "clean names": (raw_zip([RawEntry(b"./a.jpg"), RawEntry(b"a.jpg")]), 422, "twice"),
    "overlap": (raw_zip([RawEntry(b"a.jpg"), RawEntry(b"b.jpg")], same_offset=True), 422, "overlaps"),
}


@pytest.mark.parametrize("trick", HOSTILE)
def test_hostile_zip_is_refused(http: TestClient, folder: Path, trick: str) -> None:
    """A hostile or broken zip gets its own status and a sentence before any entry is read, and is deleted."""
    body, status, sentence = HOSTILE[trick]
    response = http.post("/v1/jobs", content=body, headers=ZIP_HEADER)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert sentence in response.json()["detail"]
    assert list(folder.iterdir()) == []


def test_duplicate_name_in_a_zip_is_refused(http: TestClient) -> None:
    """Two entries of one name are refused: a job has one row per name."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        body = make_zip(entry("a/0.jpg"))
    assert "twice" in http.post("/v1/jobs", content=body, headers=ZIP_HEADER).json()["detail"]


@pytest.mark.parametrize(
    ("request_options", "status", "sentence"),
    [
        pytest.param(
            {"content": bytes(2**20 + 1), "headers": ZIP_HEADER},
            413,
            "has 1,048,577 bytes; the limit is 1,048,576 (1.0 MB)",
            id="declared length",
        ),
        pytest.param(
            {"content": iter([bytes(2**19)] * 3), "headers": ZIP_HEADER}, 413, "the limit is 1,048,576", id="undeclared"
        ),
        pytest.param({"files": [("file", make_zip()), ("file", make_zip())]}, 400, "several files", id="two files"),
        pytest.param({"files": [("a", make_zip()), ("b", make_zip())]}, 400, "several files", id="two fields"),
        pytest.param({"files": {"file": ("a.zip", b"")}}, 400, "not a complete zip", id="empty file"),
        pytest.param({"files": {"file": ("", b"")}}, 400, "holds no file", id="no file chosen"),
        pytest.param({"files": {"file": (None, "text")}}, 400, "holds no file", id="text"),
        pytest.param({"files": {"file": (None, "PK")}}, 400, "holds no file", id="short text"),
        pytest.param({"files": {"note": (None, "x" * 70_000)}}, 400, "beside the zip", id="long text"),
        pytest.param({"files": [("t", (None, "x"))] * 65}, 413, "more than 64 parts", id="many fields"),
        pytest.param(
            {"content": form(data=b"\r\n--xq" * 65), "headers": FORM_HEADER}, 413, "more than 64", id="no boundaries"
        ),
        pytest.param({"content": b"--x\r\n", "headers": FORM_HEADER}, 400, "closing boundary", id="truncated"),
        pytest.param({"content": b"--x--\r\n", "headers": FORM_HEADER}, 400, "holds no file", id="no parts"),
        pytest.param(
            {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
            400,
            "has no boundary",
            id="boundary",
        ),
        pytest.param(
            {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=" + "b" * 300}},
            400,
            "Boundary length",
            id="long boundary",
        ),
    ],
)
def test_wrong_body_is_refused(http: TestClient, request_options: dict[str, Any], status: int, sentence: str) -> None:
    """A body over the limit, or a form that does not hold exactly one file, is refused and deleted."""
    response = http.post("/v1/jobs", **request_options)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert sentence in response.json()["detail"]


ZIP_TYPES = [
    *("application/zip", "Application/ZIP; charset=binary", "application/x-zip-compressed", "application/x-zip"),
    *("application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded", "*/*", ""),
]


@pytest.mark.parametrize("kind", [*ZIP_TYPES, None])
def test_a_zip_is_accepted_under_every_type_that_clients_send(http: TestClient, kind: str | None) -> None:
    """Also curl's and S3's default, any type, an empty one and none; the bytes show whether it is a zip."""
    request = http.build_request("POST", "/v1/jobs", content=make_zip())
    if kind is not None:
        request.headers["content-type"] = kind
    assert ("content-type" in request.headers) == (kind is not None)
    assert http.send(request).status_code == 202


@pytest.mark.parametrize(
    "fields",
    [
        [("zip", ("a.zip", make_zip()))],
        [("submit", (None, "Send")), ("file", ("a.zip", make_zip())), ("file", (None, "text"))],
        [("file", ("", b"")), ("photos", ("a.zip", make_zip())), ("other", ("", b"", "application/octet-stream"))],
        [("file", (None, make_zip()))],
        [("file", (None, make_zip(), "application/zip")), ("PK", (None, "PK"))],
    ],
    ids=["any field", "submit button", "no file chosen", "curl <", "type only"],
)
def test_the_only_file_of_a_form_is_the_zip(http: TestClient, folder: Path, fields: list[tuple[str, Any]]) -> None:
    """Whatever its field is called and whatever is beside it; it is stored byte for byte."""
    response = http.post("/v1/jobs", files=fields)
    assert response.status_code == 202, response.text
    assert (folder / response.json()["id"] / "upload.zip").read_bytes() == make_zip()


@pytest.mark.parametrize("size", [1, 3, 5, 1000])
async def test_fields_beside_the_file_are_skipped_in_chunks_of_any_size(tmp_path: Path, size: int) -> None:
    """A field that begins like a zip for two bytes is no file; a nameless zip is."""
    data = make_zip()
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + part + b"\r\n"
        for part in (b"", b"PK", b"PK\3", b"PK is short", data, b"last")
    )
    body += b"--x--\r\n"
    saved = await save(tmp_path / "zip", *(body[start : start + size] for start in range(0, len(body), size)))
    assert saved == (hashlib.sha256(data).hexdigest(), "upload.zip")
    assert (tmp_path / "zip").read_bytes() == data
