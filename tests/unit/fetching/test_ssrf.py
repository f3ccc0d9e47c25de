"""No URL, redirect or name leads the fetcher anywhere but to allowed hosts at allowed addresses.

``secret`` is what an attacker wants: a server that would send an image to whoever connects. It must get no connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.image_host import Answer, ImageHost, hosting, response, sends
from tests.support.photos import make_photo
from tests.support.web import make_web, tls_server

PHOTO = make_photo()


@asynccontextmanager
async def secret(address: str = "127.0.0.1", port: int = 0) -> AsyncIterator[ImageHost]:
    """A server that fails the test if anybody connects to it, with or without a request."""
    connections = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.write(response(PHOTO))
        writer.close()

    listening = await asyncio.start_server(count, address, port)
    try:
        yield ImageHost(listening.sockets[0].getsockname()[1])
    finally:
        await asyncio.sleep(0.05)  # a connection that was made would be counted now
        listening.close()
        assert connections == []


def redirects(location: str, status: int = 302) -> Answer:
    return sends(response(status=status, location=location))


async def test_a_name_that_leads_to_a_private_address_is_refused() -> None:
    async with secret("127.0.0.2") as host:
        web = make_web(host.port)
        web.names["photos.example"] = ["127.0.0.2"]
        assert await web.refuses(f"http://photos.example:{host.port}/")


@pytest.mark.parametrize("others", [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"], ["127.0.0.1", "::1"]])
async def test_one_private_address_among_others_refuses_the_name(others: list[str]) -> None:
    async with secret() as host, secret("127.0.0.2", host.port):
        web = make_web(host.port)
        web.names["photos.example"] = others
        assert await web.refuses(f"http://photos.example:{host.port}/")


async def test_rebinding_finds_no_second_lookup() -> None:
    """The name would lead elsewhere after it was checked: it is looked up once, and connected to as it was then."""
    async with hosting(sends(response(PHOTO))) as host, secret("127.0.0.2", host.port):
        web = make_web(host.port)
        web.names["photos.example"] = [["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"]]
        assert await web.fetch(f"http://photos.example:{host.port}/") == PHOTO
    assert web.lookups == ["photos.example"]


async def test_rebinding_between_two_redirects_is_checked_again() -> None:
    """Each hop is looked up once, and the answer of each look-up is checked."""
    async with hosting(redirects("/b.jpg")) as host, secret("127.0.0.2", host.port):
        web = make_web(host.port)
        web.names["photos.example"] = [["127.0.0.1"], ["127.0.0.2"]]
        assert await web.refuses(f"http://photos.example:{host.port}/a.jpg")
    assert host.paths == ["/a.jpg"]
    assert web.lookups == ["photos.example"] * 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_to_allowed_hosts_are_followed(status: int) -> None:
    """Cookies of one response are not sent with the next request."""
    async with hosting(sends(response(PHOTO))) as last:
        to_last = response(status=status, location=f"http://photos.example:{last.port}/b.jpg", set_cookie="a=b")
        async with hosting(sends(to_last)) as first:
            web = make_web(first.port, last.port)
            assert await web.fetch(f"http://photos.example:{first.port}/a.jpg") == PHOTO
    assert last.paths == ["/b.jpg"]
    assert b"cookie" not in last.heads[0].lower()
    assert b"referer" not in last.heads[0].lower()


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://evil.example:{port}/",
        "//evil.example:{port}/",
        "http://photos.example.evil.example:{port}/",
        "http://photos.example:{port}@evil.example:{port}/",
        "http://photos.example:{port}\\@evil.example:{port}/",
        "http://evil.example:{port}#@photos.example/",
        "http://evil.example:{port}/?photos.example",
        "http://private.photos.example:{port}/",  # an allowed name at a private address
        "http://photos.example:{port}/",  # an allowed name, another port
        "https://photos.example:{port}/",
        "http://photos.example.:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f000001:{port}/",
        "http://0177.0.0.1:{port}/",
        "http://127.1:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[::ffff:7f00:1]:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "file:///etc/passwd",
        "ftp://photos.example:{port}/",
        "gopher://127.0.0.1:{port}/_GET%20/",
        "data:image/png;base64,iVBORw0KGgo=",
        "\\\\evil.example:{port}\\",
        "\t//evil.example:{port}/",
        "h\tttp://evil.example:{port}/",
    ],
)
async def test_redirects_elsewhere_are_refused(location: str) -> None:
    async with secret() as target, hosting(redirects(location.format(port=target.port))) as host:
        web = make_web(host.port)
        web.hosts.append(f"http://private.photos.example:{target.port}")
        web.names["private.photos.example"] = ["127.0.0.2"]
        web.names["evil.example"] = web.names["localhost"] = web.names["127.0.0.1"] = ["127.0.0.1"]
        assert await web.refuses(f"http://photos.example:{host.port}/")
    assert host.paths == ["/"]


async def test_a_redirect_from_https_to_http_needs_an_entry_for_http() -> None:
    async with hosting(sends(response(PHOTO))) as plain:
        location = f"http://photos.example:{plain.port}/"
        async with hosting(redirects(location), tls=tls_server("photos.example")) as host:
            web = make_web(host.port, scheme="https")
            assert await web.refuses(f"https://photos.example:{host.port}/")
            assert plain.heads == []
            web.hosts.append(f"http://photos.example:{plain.port}")
            assert await web.fetch(f"https://photos.example:{host.port}/") == PHOTO


async def test_only_so_many_redirects_are_followed() -> None:
    """A server that redirects to itself for ever is asked ``max_redirects`` times more."""
    async with hosting(redirects("/again")) as host:
        for most in (0, 2):
            host.heads.clear()
            assert await make_web(host.port, max_redirects=most).refuses(f"http://photos.example:{host.port}/")
            assert len(host.heads) == most + 1


@pytest.mark.parametrize(
    "answer",
    [
        response(status=302),
        b"HTTP/1.1 302 Found\r\nLocation: /a\r\nLocation: /b\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /\xc3\xa9\r\n\r\n",
        response(status=300, location="/a"),
        response(status=304, location="/a"),
        response(status=200, location="/a"),
        response(status=200, refresh="0; url=/a"),
    ],
)
async def test_unclear_redirects_are_not_followed(answer: bytes) -> None:
    async with hosting(sends(answer)) as host:
        assert await make_web(host.port).refuses(f"http://photos.example:{host.port}/")
    assert len(host.heads) == 1


async def test_the_first_url_is_compared_with_the_list_too() -> None:
    """The Preprocessor does not rely on the ingress, which has done so before."""
    async with secret() as host:
        web = make_web(host.port)
        web.names["evil.example"] = ["127.0.0.1"]
        assert await web.refuses(f"http://evil.example:{host.port}/")
        assert await web.refuses(f"http://127.0.0.1:{host.port}/")
    assert web.lookups == []


@pytest.mark.parametrize("address", ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "::ffff:169.254.169.254"])
async def test_metadata_services_are_refused_even_when_their_network_is_listed(address: str) -> None:
    web = make_web(80, networks=("0.0.0.0/0", "::/0"))
    web.names["photos.example"] = [address]
    assert await web.refuses("http://photos.example/latest/meta-data/iam/security-credentials/")
