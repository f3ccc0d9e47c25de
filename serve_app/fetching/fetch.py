"""Fetches one image by its URL: allowed hosts only, checked addresses only, within the bounds of an upload."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import cache

import httpcore2

from serve_app.config import LimitsConfig
from serve_app.errors import (
    DeadlineExceededError,
    ServiceError,
    TooLargeError,
    UnfetchableImageError,
    UnsupportedImageError,
)
from serve_app.fetching.addresses import Network, check_addresses, resolve
from serve_app.image_url import ImageUrl
from serve_app.messages import RemoteImage
from serve_app.preprocessing.formats import detect_format

CONNECT_TIMEOUT_S = 5.0  # per address, and for TLS
MAX_PIECES = 25_000  # of a body; each takes about 40 µs, and servers send pieces of kilobytes
OK, REDIRECTS = 200, (301, 302, 303, 307, 308)
HEADERS = {"User-Agent": "serve_app", "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}
HTTP_ERRORS = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)
Resolve = Callable[[str, int], Awaitable[list[str]]]
log = logging.getLogger("serve_app")


class _RefusedError(Exception):
    """Why there is no image, for the log: a client could map the network behind this service with it."""


class ImageFetcher:
    """Fetches images by URL.

    There is no cookie, no proxy of the environment, no cache and no connection that outlives its request.

    Args:
        resolve: Returns the addresses of a name.
        tls: What certificates are checked with; by default the system's authorities, or those in ``SSL_CERT_FILE``.
    """

    def __init__(self, resolve: Resolve = resolve, tls: Callable[[], ssl.SSLContext] | None = None) -> None:
        self._resolve, self._tls = resolve, tls or cache(httpcore2.default_ssl_context)

    async def fetch(self, image: RemoteImage) -> bytes | ServiceError:
        """Return the encoded file, or the error.

        Every failure before there is an image has the same text, whether the name does not exist, leads to a private
        address or refuses the connection, or the server sends a web page: the log has the reason.

        Returns:
            The file, an image by its first bytes. UnfetchableImageError (422), TooLargeError (413), or
            DeadlineExceededError (504) when the request's deadline has passed.
        """
        context, host = image.context, image.url.authority
        try:
            context.deadline.check()
            encoded = await self._within_time(image)
            detect_format(encoded)
            return encoded
        except (TooLargeError, DeadlineExceededError) as error:
            return error
        except TimeoutError:
            if context.deadline.left_s() <= 0:
                return context.deadline.exceeded()
            reason = "it was too slow"
        except (OSError, ValueError, UnsupportedImageError, _RefusedError, *HTTP_ERRORS) as error:
            reason = f"{type(error).__name__}: {error}"
        # The path and the query may hold secrets, such as a signature.
        log.warning("request %s, image %d: nothing from %s: %.300s", context.request_id, context.index, host, reason)
        return UnfetchableImageError(
            f"no image could be fetched from {host}: its server must be on the public internet, answer with 200 in "
            "time, redirect to allowed hosts only, and send an image without a content coding"
        )

    async def _within_time(self, image: RemoteImage) -> bytes:
        """Follow redirects and read the body; TimeoutError where that takes too long."""
        config, url, start = image.config, image.url, _now()
        expires_at = start + min(config.timeout_s, image.context.deadline.left_s())
        async with asyncio.timeout_at(min(expires_at, start + image.limits.body_grace_s)) as timeout:
            for _ in range(config.max_redirects + 1):
                if not config.allows(url):
                    raise _RefusedError(f"it leads to {url.scheme}://{url.authority}, which is not allowed")
                async with self._get(url, config.allowed_networks) as response:
                    if response.status in REDIRECTS:
                        url = _next_url(url, response)
                        continue
                    return await _read(response, image.limits, timeout, expires_at)
        raise _RefusedError(f"it redirects more than {config.max_redirects} times")

    @asynccontextmanager
    async def _get(self, url: ImageUrl, allowed: Iterable[Network]) -> AsyncIterator[httpcore2.Response]:
        """Send a GET over a new connection to an address that has been checked; the name is looked up once."""
        addresses = await self._resolve(url.host, url.port)
        check_addresses(addresses, allowed)
        backend = _CheckedAddresses(addresses)
        connection = httpcore2.AsyncHTTPConnection(
            httpcore2.Origin(url.scheme.encode(), url.host.encode(), url.port),
            self._tls() if url.scheme == "https" else None,
            network_backend=backend,
        )
        request = httpcore2.Request(
            "GET",
            httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target),
            headers=[("Host", url.authority), *HEADERS.items()],
            extensions={"timeout": {"connect": CONNECT_TIMEOUT_S}},
        )
        try:
            yield await connection.handle_async_request(request)
        finally:
            await backend.aclose()


class _CheckedAddresses(httpcore2.AsyncNetworkBackend):
    """Connects to the first of these addresses that answers, whatever the name leads to by now.

    The name stays what TLS and the header ``Host`` say.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses, self._backend = addresses, httpcore2.AnyIOBackend()
        self._stream: httpcore2.AsyncNetworkStream | None = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        failure: Exception | None = None
        for address in self._addresses:
            try:
                self._stream = await self._backend.connect_tcp(address, port, timeout)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
            else:
                return self._stream
        raise failure or httpcore2.ConnectError(f"{host} has no address")

    async def aclose(self) -> None:
        """Close the connection, also one whose TLS handshake was cut off."""
        if self._stream:
            await self._stream.aclose()


async def _read(
    response: httpcore2.Response, limits: LimitsConfig, timeout: asyncio.Timeout, expires_at: float
) -> bytes:
    """Return the body; its size, its pace and its number of pieces are bounded like those of an upload."""
    if response.status != OK:
        raise _RefusedError(f"the status is {response.status}")
    if (coding := _header(response, b"content-encoding") or "identity").lower() != "identity":
        raise _RefusedError(f"the content coding is {coding}")
    limit, started_at = limits.max_image_bytes, _now()
    too_large = TooLargeError(f"the image has more than {limit:,} bytes, the limit ({limit / 2**20:.1f} MB)")
    if int(_header(response, b"content-length") or 0) > limit:
        raise too_large
    body, pieces = bytearray(), 0
    async for piece in response.aiter_stream():
        body += piece
        pieces += 1
        if len(body) > limit:
            raise too_large
        if pieces > MAX_PIECES:
            raise _RefusedError(f"the body comes in more than {MAX_PIECES} pieces")
        behind_at = min(_now(), started_at + len(body) / limits.min_body_bytes_per_s) + limits.body_grace_s
        timeout.reschedule(min(expires_at, behind_at))
    return bytes(body)


def _next_url(url: ImageUrl, response: httpcore2.Response) -> ImageUrl:
    """Return where a redirect leads."""
    if (location := _header(response, b"location")) is None:
        raise _RefusedError(f"the status is {response.status}, without a location")
    return url.join(location)


def _header(response: httpcore2.Response, name: bytes) -> str | None:
    """Return a header that may be there once."""
    values = [value for key, value in response.headers if key.lower() == name]
    if len(values) > 1:
        raise _RefusedError(f"it sends several headers {name.decode()}")
    return values[0].decode("ascii") if values else None


def _now() -> float:
    return asyncio.get_running_loop().time()
