"""Multipart forms: whole or refused, whoever wrote them, within limits that hold before anything is kept."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.testclient import TestClient

from serve_app.errors import MalformedRequestError, ServiceError, TooLargeError
from serve_app.http.form_body import Form, FormFile, FormSchema, read_form
from serve_app.http.form_names import read_names
from tests.support.photos import make_photo

PHOTOS = [make_photo(seed, 64, 48) for seed in range(3)]
TYPE = "multipart/form-data; boundary=XbX"
SCHEMA = FormSchema(("images", "file"), ("top_k",), max_files=8, max_file_bytes=200_000)


def part(data: bytes, disposition: str = 'form-data; name="images"; filename="a.jpg"', more: str = "") -> bytes:
    return f"--XbX\r\nContent-Disposition: {disposition}\r\n{more}\r\n".encode() + data + b"\r\n"


WHOLE = b"".join(map(part, PHOTOS)) + b"--XbX--\r\n"


async def read(body: bytes, content_type: str = TYPE, step: int = 2**30) -> Form:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), step):
            yield body[at : at + step]

    return await read_form(chunks(), content_type, SCHEMA)


@pytest.mark.parametrize("step", [1, 3, 64, 2**30])
async def test_a_cut_form_is_refused_wherever_it_ends(step: int) -> None:
    """At every byte before the end of the closing boundary; only the line end after it may be missing."""
    short = part(b"one") + part(b"2", 'form-data; name="top_k"') + part(b"three\r\n--Xb") + b"--XbX--\r\n"
    for end in range(len(short) - 2):
        with pytest.raises(MalformedRequestError, match=r"closing boundary|has no line|does not parse"):
            await read(short[:end], step=step)
    for end in range(len(short) - 2, len(short) + 1):
        form = await read(short[:end], step=step)
        assert [file.content for file in form.files] == [b"one", b"three\r\n--Xb"]
        assert form.fields == {"top_k": "2"}


@pytest.mark.parametrize("path", ["/v1/classify", "/predict"])
@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_cut_form_is_a_400_on_each_path(shared_http: TestClient, path: str, is_chunked: bool) -> None:
    """In the third image, and after it; with a declared length and without."""

    def chunks(body: bytes) -> Iterator[bytes]:
        yield body[:100]
        yield body[100:]

    headers = {"content-type": TYPE}
    for body in (WHOLE[:-500], WHOLE[: -len(b"--XbX--\r\n")], WHOLE[:-3], part(PHOTOS[0])[:-9], b""):
        cut = shared_http.post(path, content=chunks(body) if is_chunked else body, headers=headers)
        assert (cut.status_code, cut.json()["code"]) == (400, "malformed"), cut.text
    assert shared_http.post(path, content=chunks(WHOLE) if is_chunked else WHOLE, headers=headers).status_code == 200


@pytest.mark.parametrize("step", [1, 5, 2**30])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (WHOLE, TYPE),
        (WHOLE, 'Multipart/Form-Data; charset=utf-8; Boundary="XbX"'),
        (b"This is a multipart message.\r\n" + WHOLE, TYPE),
        (b"\r\n\r\n" + WHOLE, TYPE),
        (b"--Xb\r\n" + WHOLE, TYPE),
        (WHOLE + b"and an epilogue\r\n--XbX\r\n", TYPE),
        (WHOLE[:-2], TYPE),
        (WHOLE.replace(b"\r\n--XbX\r\n", b"\r\n--XbX  \t\r\n").replace(b"--XbX--", b"--XbX--  "), TYPE),
        (WHOLE.replace(b"XbX", b"----=_Part 1:'()+,./?"), 'multipart/form-data; boundary="----=_Part 1:\'()+,./?"'),
        (WHOLE.replace(b"Content-Disposition", b"CONTENT-DISPOSITION"), TYPE),
        (WHOLE.replace(b"\r\n\r\n", b"\r\nContent-Type: image/jpeg\r\nContent-Length: 9\r\n\r\n"), TYPE),
    ],
    ids=[
        "plain",
        "quoted",
        "preamble",
        "line ends",
        "near boundary",
        "epilogue",
        "no line end",
        "padding",
        "odd",
        "case",
        "more",
    ],
)
async def test_whole_forms_however_they_are_written(body: bytes, content_type: str, step: int) -> None:
    form = await read(body, content_type, step)
    assert [(file.name, file.content) for file in form.files] == [("a.jpg", photo) for photo in PHOTOS]


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('form-data; name="images"; filename="day.jpg"', "day.jpg"),
        ("form-data; name=images; filename=day.jpg", "day.jpg"),
        ('form-data; name="images"; filename="a: day.jpg"', "a: day.jpg"),
        ('form-data; name="images"; filename="a;b, \\"c\\".jpg"', 'a;b, "c".jpg'),
        ('form-data; name="images"; filename="C:\\photos\\day.jpg"', "day.jpg"),
        ('form-data; name="images"; filename="名前.jpg"', "名前.jpg"),
        # RFC 8187, as urllib3 before 1.25 writes
        ("form-data; name=\"images\"; filename*=utf-8''%E5%90%8D%E5%89%8D.jpg", "名前.jpg"),
        ('form-data; name="images"; filename*=UTF-8\'ja\'%E5%90%8D.jpg; filename="x.jpg"', "名.jpg"),
        ('form-data; name="images"; filename="x.jpg"; filename*=iso-8859-1\'\'caf%E9.jpg', "café.jpg"),
        ('form-data; name="images"; filename*="utf-8\'\'caf%C3%A9.jpg"', "café.jpg"),
        ("form-data; name=\"images\"; filename*=utf-8''100%2525.jpg", "100%25.jpg"),
        ("form-data; name=\"images\"; filename*0*=utf-8''%E5%90; filename*1*=%8D; filename*2=.jpg", "名.jpg"),
        ('form-data; name="images"; filename="x; filename*=utf-8\'\'y"', "x; filename*=utf-8''y"),
        ("form-data; name*=utf-8''images; filename=day.jpg", "day.jpg"),
        # RFC 2047, as .NET writes
        ('form-data; name=images; filename="=?utf-8?B?5ZCN5YmNLmpwZw==?="', "名前.jpg"),
        (
            "form-data; name=images; filename=\"=?utf-8?B?eA==?=\"; filename*=utf-8''%E5%90%8D%E5%89%8D.jpg",
            "名前.jpg",
        ),
        ('form-data; name=images; filename="=?UTF-8?Q?caf=C3=A9_1.jpg?="', "café 1.jpg"),
        ('form-data; name=images; filename="=?utf-8?B?5ZCN?= =?utf-8?B?5YmNLmpwZw==?="', "名前.jpg"),
        ('form-data; name="=?utf-8?B?aW1hZ2Vz?="; filename="day.jpg"', "day.jpg"),
        ('form-data; name=images; filename="=?utf-8?B?@@?="', "=?utf-8?B?@@?="),
        ('form-data; name=images; filename="a =?utf-8?B?eA==?= b"', "a =?utf-8?B?eA==?= b"),
    ],
)
async def test_file_names_of_every_client(disposition: str, name: str) -> None:
    form = await read(part(PHOTOS[0], disposition) + b"--XbX--")
    assert form.files == [FormFile(name, PHOTOS[0], "images")]


@pytest.mark.parametrize("charset", ["unicode_escape", "zlib", "idna", "raw_unicode_escape", "utf-7", "", "x" * 500])
def test_no_character_set_breaks_a_name(charset: str) -> None:
    """A name is always text that JSON can hold."""
    for disposition in (
        f"form-data; name=images; filename*={charset}''%5Cud800%ff",
        f'form-data; name=images; filename="=?{charset}?Q?=5Cud800=FF?="',
    ):
        field, name = read_names(disposition.encode())
        assert field == "images"
        assert name
        name.encode()
    _, name = read_names(b'form-data; name=images; filename="\\ud800\xff"', charset)
    assert name
    name.encode()


async def test_latin_1_names_are_read_with_the_declared_character_set() -> None:
    disposition = 'form-data; name="images"; filename="é.jpg"'.encode("latin-1")
    body = b"--XbX\r\nContent-Disposition: " + disposition + b"\r\n\r\nx\r\n--XbX--"
    assert (await read(body)).files[0].name == "é.jpg"
    russian = body.replace("é".encode("latin-1"), "ж".encode("koi8-r"))
    assert (await read(russian, TYPE + "; charset=koi8-r")).files[0].name == "ж.jpg"


async def test_other_parts_of_a_browsers_form() -> None:
    """Known fields are read, others named; a file input without a choice is no file, a file without a name is one."""
    body = b"".join(
        [
            part(b"", 'form-data; name="images"; filename=""', "Content-Type: application/octet-stream\r\n"),
            part(b"", 'form-data; name="attachment"; filename=""'),
            part(PHOTOS[0], 'form-data; name="file"'),
            part(b"", 'form-data; name="file"; filename="empty.jpg"'),
            part(b"3", 'form-data; name="top_k"'),
            part(b"Upload", 'form-data; name="submit"'),
            part(b"12", 'form-data; name="button.x"'),
            part(b"UTF-8", 'form-data; name="_charset_"'),
            b"--XbX--",
        ]
    )
    form = await read(body)
    assert form.files == [FormFile(None, PHOTOS[0], "file"), FormFile("empty.jpg", b"", "file")]
    assert form.fields == {"top_k": "3"}
    assert form.unknown == ["attachment", "submit", "button.x"]


def test_a_submit_button_and_a_file_without_a_name(shared_http: TestClient) -> None:
    body = part(PHOTOS[0], 'form-data; name="images"') + part(b"Go", "form-data; name=go") + b"--XbX--"
    answer = shared_http.post("/v1/classify", content=body, headers={"content-type": TYPE})
    assert answer.status_code == 200, answer.text
    assert "id" not in answer.json()["results"][0]
    assert answer.json()["warnings"] == ["form field 'go' is unknown and was ignored"]
    blank = part(b"", 'form-data; name="top_k"') + part(PHOTOS[0]) + b"--XbX--"
    assert shared_http.post("/v1/classify", content=blank, headers={"content-type": TYPE}).status_code == 200


def many(count: int, disposition: str = "form-data; name=x", data: bytes = b"1") -> bytes:
    return part(data, disposition) * count + b"--XbX--"


@pytest.mark.parametrize("step", [5, 1000, 2**30])
@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        (many(9, "form-data; name=images; filename=a"), TooLargeError, "more than 8 files"),
        (many(9, "form-data; name=images"), TooLargeError, "more than 8 files"),
        (many(73), TooLargeError, "more than 72 parts"),
        (many(5000), TooLargeError, "more than 72 parts"),
        (many(5000, "form-data; name=images; filename=", b""), TooLargeError, "more than 72 parts"),
        (part(b"\r\n--XbXq" * 5000) + b"--XbX--", TooLargeError, "more than 72 parts"),
        (part(b"\r\n--XbXq" * 72) + b"--XbX--", TooLargeError, "more than 72 parts"),
        (many(1, "form-data; name=top_k", b"1" * 5000), MalformedRequestError, "'top_k': longer than 4096 bytes"),
        (many(1, "form-data; name=" + "x" * 5000), MalformedRequestError, "does not parse"),
        (part(b"1", more="X: y\r\n" * 20) + b"--XbX--", MalformedRequestError, "does not parse"),
        (many(1, "form-data; filename=a"), MalformedRequestError, "no field name"),
        (many(1, "form-data; name=other; filename=a"), MalformedRequestError, "'other': send files in the field 'imag"),
        (b"x" * 10_000, MalformedRequestError, "have no boundary line"),
        (WHOLE.replace(b"\r\n", b"\n"), MalformedRequestError, "does not parse"),
        (WHOLE.replace(b"XbX", b"YbY"), MalformedRequestError, "no boundary line|has no line `--XbX`"),
    ],
)
async def test_limits_hold_before_anything_is_kept(
    body: bytes, error: type[ServiceError], says: str, step: int
) -> None:
    with pytest.raises(error, match=says) as refused:
        await read(body, step=step)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("boundary", ["", "; boundary=", '; boundary=""', "; boundary=" + "b" * 300])
async def test_a_form_without_a_usable_boundary(boundary: str) -> None:
    with pytest.raises(MalformedRequestError, match=r"no boundary|Boundary length"):
        await read(WHOLE, "multipart/form-data" + boundary)


async def test_what_is_skipped_takes_no_memory() -> None:
    """An unknown field of 20 MB and a file above the limit are counted, not kept."""
    bodies = [
        part(b"y" * 20_000_000, 'form-data; name="note"') + part(b"x") + b"--XbX--",
        part(b"z" * 20_000_000) + b"--XbX--",
    ]
    for body in bodies:
        tracemalloc.start()
        form = await read(body, step=65_536)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_000_000
        assert form.unknown in (["note"], [])
        if not form.unknown:
            assert "the image has 20,000,000 bytes; the limit is 200,000" in str(form.files[0].content)
