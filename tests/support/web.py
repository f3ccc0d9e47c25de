"""A fetcher whose names lead where a test says. Servers (image_host.py), sockets and TLS are real."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import Any

import trustme

from serve_app.config import LimitsConfig
from serve_app.deadline import Deadline
from serve_app.errors import ServiceError, UnfetchableImageError
from serve_app.fetching.fetch import ImageFetcher
from serve_app.image_url import ImageUrl
from serve_app.images_by_url_config import ImagesByUrlConfig
from serve_app.messages import RemoteImage, RequestContext

CA = trustme.CA()
LIMITS = LimitsConfig(max_image_bytes=100_000, min_body_bytes_per_s=4096, body_grace_s=20)


def tls_server(*names: str, authority: trustme.CA = CA) -> ssl.SSLContext:
    """Return what a server with a certificate for these names uses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@dataclass
class Web:
    """Fetches under settings that a test changes.

    Attributes:
        names: Each name's addresses; of a list of lists, each look-up takes the next.
        lookups: The names that were looked up.
        hosts: ``allowed_hosts``.
        networks: ``allowed_networks``: one loopback address, so that others stay refused.
    """

    names: dict[str, list[Any]]
    hosts: list[str]
    networks: tuple[str, ...] = ("127.0.0.1/32",)
    timeout_s: float = 20
    deadline_s: float = 20
    max_redirects: int = 3
    limits: LimitsConfig = LIMITS
    lookups: list[str] = field(default_factory=list)

    async def resolve(self, host: str, port: int) -> list[str]:
        self.lookups.append(host)
        await asyncio.sleep(0)
        if not (addresses := self.names.get(host)):
            raise OSError(f"there is no {host}")
        return addresses.pop(0) if isinstance(addresses[0], list) else addresses

    async def fetch(self, url: str) -> bytes | ServiceError:
        config = ImagesByUrlConfig(
            allowed_hosts=self.hosts,
            allowed_networks=self.networks,
            timeout_s=self.timeout_s,
            max_redirects=self.max_redirects,
        )
        context = RequestContext("req_1", 3, Deadline(self.deadline_s))
        return await ImageFetcher(self.resolve, _trust_ca).fetch(
            RemoteImage(ImageUrl.parse(url), config, self.limits, context)
        )

    async def refuses(self, url: str) -> bool:
        """Whether there is the one error that says nothing about the network behind the service."""
        error = await self.fetch(url)
        assert isinstance(error, UnfetchableImageError), error
        sentence = "no image could be fetched from {}: its server must be on the public internet"
        return str(error).startswith(sentence.format(ImageUrl.parse(url).authority))


def _trust_ca() -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


def make_web(*ports: int, scheme: str = "http", **changes: Any) -> Web:
    """Return a Web in which ``photos.example`` is 127.0.0.1, and allowed with these ports."""
    return Web({"photos.example": ["127.0.0.1"]}, [f"{scheme}://photos.example:{port}" for port in ports], **changes)
