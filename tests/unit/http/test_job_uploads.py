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
from serve_app.http import job_uploads
from serve_app.http.app import create_app
from tests.support.local_service import LocalService
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
        jobs=JobsConfig(folder=str(folder), max_zip_bytes=2**20, max_zip_entries=50, max_unpacked_bytes=2**22)
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
    return await job_uploads.save_zip(
        Request({"type": "http", "headers": headers}, receive), path, JobsConfig(folder=".")
    )


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
        (f'form-data; name="file"; filename="{"n" * 300}"', "n" * 200),
    ],
    ids=["unquoted", "any order", "empty", "long"],
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
    monkeypatch.setattr(job_uploads, "IDLE_TIMEOUT_S", 0.01)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(SlowBodyError):
        await job_uploads.save_zip(
            Request({"type": "http", "headers": []}, receive), tmp_path / "zip", JobsConfig(folder=".")
        )


HOSTILE: dict[str, tuple[bytes, int, str]] = {
    "up": (make_zip(entry("../../etc/cron.d/x")), 422, "leads out of the zip"),
    "up inside": (make_zip(entry("a/../../x.jpg")), 422, "leads out of the zip"),
    "absolute": (make_zip(entry("/etc/passwd")), 422, "leads out of the zip"),
    "drive": (make_zip(entry("C:x.jpg")), 422, "leads out of the zip"),
    "backslash": (make_zip(entry("..\\x.jpg")), 422, "leads out of the zip"),
    "symlink": (make_zip(entry("link.jpg", 0o777 | stat.S_IFLNK, data=b"/etc/passwd")), 422, "a link or a device"),
    "device": (make_zip(entry("null", 0o666 | stat.S_IFCHR)), 422, "a link or a device"),
    "encrypted": (make_zip(entry("a.jpg", flags=1)), 422, "encrypted"),
    "bzip2": (make_zip(entry("a.jpg", compression=zipfile.ZIP_BZIP2)), 422, "compression method 12"),
    "entries": (make_zip(*(entry(f"{n}.jpg") for n in range(60))), 413, "62 entries"),
    "long names": (make_zip(*(entry(f"{n}{'x' * 600}.jpg") for n in range(20))), 413, "directory has"),
    "bomb": (make_zip(entry("zero.bmp", data=bytes(4_000_000))), 413, "grows"),
    "large": (make_zip(*(entry(f"{n}.bmp", data=bytes(1_100_000)) for n in range(4))), 413, "bytes once unpacked"),
    "text": (b"no zip at all", 400, "not a complete zip"),
    "cut": (make_zip()[:-30], 400, "not a complete zip"),
    "nothing": (b"", 400, "not a complete zip"),
    "no files": (b"PK\5\6" + bytes(18), 400, "holds no files"),
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
        pytest.param(
            {"files": {"zip": make_zip()}},
            400,
            "send one file, with its file name, in the field 'file'",
            id="field name",
        ),
        pytest.param({"files": [("file", make_zip()), ("file", make_zip())]}, 400, "several files", id="two files"),
        pytest.param({"data": {"file": "text"}, "files": {"file": make_zip()}}, 400, "send one file", id="text"),
        pytest.param({"content": b"--x\r\n", "headers": FORM_HEADER}, 400, "closing boundary", id="truncated"),
        pytest.param({"content": b"--x--\r\n", "headers": FORM_HEADER}, 400, "holds no file", id="no parts"),
        pytest.param(
            {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
            400,
            "names no boundary",
            id="boundary",
        ),
    ],
)
def test_wrong_body_is_refused(http: TestClient, request_options: dict[str, Any], status: int, sentence: str) -> None:
    """A body over the limit, or a form that does not hold exactly one file, is refused and deleted."""
    response = http.post("/v1/jobs", **request_options)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert sentence in response.json()["detail"]
