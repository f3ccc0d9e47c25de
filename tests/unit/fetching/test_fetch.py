"""One image by URL: it is fetched, or refused with a text that says nothing about the network behind the service."""

from __future__ import annotations

import gzip
import logging

import pytest
import trustme

from serve_app.errors import DeadlineExceededError
from tests.support.image_host import hosting, response, sends, silent
from tests.support.photos import make_photo
from tests.support.web import make_web, tls_server

PHOTO = make_photo()


async def test_an_image_is_fetched() -> None:
    """The server sees the URL's own name, port, path and query, and nothing that identifies a client."""
    async with hosting(sends(response(PHOTO, content_type="text/html"))) as host:
        assert await make_web(host.port).fetch(f"http://photos.example:{host.port}/a%20b.jpg?w=1#top") == PHOTO
    (head,) = host.heads
    lines = head.decode().split("\r\n")
    assert lines[0] == "GET /a%20b.jpg?w=1 HTTP/1.1"
    assert {line.split(":")[0] for line in lines[1:] if line} == {
        "Host", "User-Agent", "Accept", "Accept-Encoding", "Connection",
    }  # fmt: skip
    assert f"Host: photos.example:{host.port}" in lines


async def test_a_server_may_declare_no_length() -> None:
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (PHOTO[:999], PHOTO[999:])) + b"0\r\n\r\n"
    for answer in (
        b"HTTP/1.1 200 OK\r\n\r\n" + PHOTO,
        b"HTTP/1.0 200 OK\r\n\r\n" + PHOTO,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" + PHOTO,
    ):
        async with hosting(sends(answer)) as host:
            assert await make_web(host.port).fetch(f"http://photos.example:{host.port}/") == PHOTO


async def test_https_checks_the_name_of_the_certificate() -> None:
    """The connection goes to an address; the certificate and SNI are those of the name."""
    names: list[str] = []
    tls = tls_server("photos.example")
    tls.sni_callback = lambda sock, name, context: names.append(name)
    async with hosting(sends(response(PHOTO)), tls=tls) as host:
        fetching = make_web(host.port, scheme="https")
        assert await fetching.fetch(f"https://photos.example:{host.port}/") == PHOTO
    assert names == ["photos.example"]


@pytest.mark.parametrize("authority", ["ours", "unknown"])
async def test_a_wrong_certificate_is_refused(authority: str) -> None:
    """It is for another name or for the address, or an authority that nobody trusts has signed it."""
    tls = (
        tls_server("evil.example", "127.0.0.1")
        if authority == "ours"
        else tls_server("photos.example", authority=trustme.CA())
    )
    async with hosting(sends(response(PHOTO)), tls=tls) as host:
        fetching = make_web(host.port, scheme="https")
        assert await fetching.refuses(f"https://photos.example:{host.port}/")
    assert host.heads == []


async def test_the_next_address_is_tried() -> None:
    """The first of a name's addresses refuses the connection."""
    async with hosting(sends(response(PHOTO)), "127.0.0.2") as host:
        fetching = make_web(host.port, networks=("127.0.0.0/8",))
        fetching.names["photos.example"] = ["127.0.0.3", "127.0.0.2"]
        assert await fetching.fetch(f"http://photos.example:{host.port}/") == PHOTO


async def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would look the name up again, where nothing is checked."""
    async with hosting(sends(response(PHOTO))) as proxy, hosting(sends(response(PHOTO))) as host:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert await make_web(host.port).fetch(f"http://photos.example:{host.port}/") == PHOTO
    assert proxy.heads == []
    assert len(host.heads) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(response(PHOTO, status=204), id="204"),
        pytest.param(response(PHOTO, status=206), id="206"),
        pytest.param(response(PHOTO, status=304), id="304"),
        pytest.param(response(PHOTO, status=404), id="404"),
        pytest.param(response(PHOTO, status=500), id="500"),
        pytest.param(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + PHOTO, id="101"
        ),
        pytest.param(response(gzip.compress(PHOTO), content_encoding="gzip"), id="gzip"),
        pytest.param(response(PHOTO, content_encoding="identity, gzip"), id="two codings"),
        pytest.param(response(b"<html>"), id="a page"),
        pytest.param(response(b""), id="empty"),
        pytest.param(response(PHOTO)[:-9], id="cut off"),
        pytest.param(b"", id="no response"),
        pytest.param(PHOTO, id="no HTTP"),
        pytest.param(b"220 mail.example ESMTP\r\n", id="SMTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + PHOTO, id="negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 9\r\n\r\n" + PHOTO, id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n" + PHOTO, id="transfer coding"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + PHOTO, id="broken chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Encoding: \xff\r\n\r\n" + PHOTO, id="header outside ASCII"),
    ],
)
async def test_what_is_no_image_has_one_text(answer: bytes) -> None:
    async with hosting(sends(answer)) as host:
        assert await make_web(host.port).refuses(f"http://photos.example:{host.port}/")


async def test_what_cannot_be_reached_has_the_same_text() -> None:
    """A name that does not exist, a port where nobody listens, a private address: a client cannot tell them apart."""
    async with hosting(sends(response(b"no image"))) as host:
        port = host.port
        fetching = make_web(port)
        fetching.hosts.append(f"http://*.photos.example:{port}")
        fetching.names["private.photos.example"] = ["10.0.0.1"]
        names = ("photos", "private.photos", "missing.photos")
        texts = {str(await fetching.fetch(f"http://{name}.example:{port}/")).replace(f"{name}.", "") for name in names}
    texts.add(str(await fetching.fetch(f"http://photos.example:{port}/")).replace("photos.", ""))
    assert len(texts) == 1


async def test_the_log_has_the_reason_without_the_query(caplog: pytest.LogCaptureFixture) -> None:
    fetching = make_web(80)
    fetching.names["photos.example"] = ["10.0.0.1"]
    with caplog.at_level(logging.WARNING, "serve_app"):
        assert await fetching.refuses("http://photos.example/secret.jpg?signature=secret") is True
    (record,) = caplog.records
    assert "request req_1, image 3: nothing from photos.example" in record.getMessage()
    assert "10.0.0.1" in record.getMessage()
    assert "secret" not in record.getMessage()


async def test_a_passed_deadline_is_the_deadlines_error() -> None:
    """It passes before, or while the server is silent."""
    async with hosting(silent) as host:
        for deadline_s in (-1, 0.1):
            error = await make_web(host.port, deadline_s=deadline_s).fetch(f"http://photos.example:{host.port}/")
            assert isinstance(error, DeadlineExceededError)
    assert len(host.heads) == 1
