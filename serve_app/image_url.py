"""URLs of images: read strictly, once, and compared with the allow-list's entries.

Nothing reads the text of a URL a second time: the parts that are checked here are those that are connected to and sent.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from typing import NamedTuple
from urllib.parse import urljoin

MAX_URL_CHARS = 4096
DEFAULT_PORTS = {"https": 443, "http": 80}
_HOST = r"(?P<host>[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*)"  # a trailing dot would be another spelling of a name
_PORT = r"(?::(?P<port>[1-9][0-9]{0,4}))?"
_FLAGS = re.ASCII | re.IGNORECASE
# After the port come path and query, without `\`, which browsers read as `/`. The fragment is never sent.
URL = re.compile(rf'(?P<scheme>https?)://{_HOST}{_PORT}(?P<target>[/?][!"$-\[\]-~]*)?(?:#[!-~]*)?', _FLAGS)
ENTRY = re.compile(rf"(?:(?P<scheme>https?)://)?(?P<wildcard>\*\.)?{_HOST}{_PORT}", _FLAGS)
# Resolvers read a name whose last label is a number as an IPv4 address: 2130706433, 0x7f.1 and 0177.0.0.1 as 127.0.0.1.
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class ImageUrl(NamedTuple):
    """The parts of an absolute URL."""

    scheme: str  # http or https
    host: str  # in lower case; a DNS name, or an IPv4 address in four decimal parts
    port: int
    target: str  # path and query, percent-encoded

    @classmethod
    def parse(cls, text: str) -> ImageUrl:
        """Read a URL, or raise ValueError with what is wrong with it."""
        if len(text) > MAX_URL_CHARS:
            raise ValueError(f"it has more than {MAX_URL_CHARS} characters")
        if not text.isascii():
            raise ValueError("it has letters outside ASCII; write the host as `xn--…` and percent-encode the rest")
        if not (match := URL.fullmatch(text)):
            raise ValueError(
                "it is not of the form `https://name:port/path`; user names, IPv6 addresses, backslashes, spaces and "
                "other schemes are not accepted"
            )
        scheme, target = match["scheme"].lower(), match["target"] or "/"
        return cls(scheme, *_place(match, scheme), target if target.startswith("/") else f"/{target}")

    def join(self, location: str) -> ImageUrl:
        """Return where a redirect leads, or raise ValueError."""
        return ImageUrl.parse(urljoin(f"{self.scheme}://{self.authority}{self.target}", location))

    @property
    def authority(self) -> str:
        """Host, and port unless it is the scheme's own: what the header ``Host`` says."""
        return self.host if self.port == DEFAULT_PORTS[self.scheme] else f"{self.host}:{self.port}"


class HostRule(NamedTuple):
    """One entry of the allow-list, such as ``photos.example`` or ``http://*.intranet.example:8080``."""

    scheme: str
    host: str  # without the ``*.`` of a wildcard
    port: int
    subdomains: bool  # the names below ``host``, not ``host`` itself

    @classmethod
    def parse(cls, entry: str) -> HostRule:
        """Read an entry, or raise ValueError."""
        if not (match := ENTRY.fullmatch(entry)):
            raise ValueError(
                f"{entry!r:.100} is not of the form `photos.example`, `*.photos.example`, `photos.example:8443` or "
                "`http://photos.example`"
            )
        host, port = _place(match, scheme := (match["scheme"] or "https").lower())
        if match["wildcard"] and ("." not in host or _is_address(host)):
            raise ValueError(f"{entry!r:.100} names too many hosts; write at least two labels after `*.`")
        return cls(scheme, host, port, match["wildcard"] is not None)

    def matches(self, url: ImageUrl) -> bool:
        """Return whether the entry allows a URL: scheme and port count too."""
        fits = url.host.endswith(f".{self.host}") if self.subdomains else url.host == self.host
        return fits and (url.scheme, url.port) == (self.scheme, self.port)


def _place(match: re.Match[str], scheme: str) -> tuple[str, int]:
    """Return host and port of a match, or raise ValueError."""
    host, port = match["host"].lower(), int(match["port"] or DEFAULT_PORTS[scheme])
    if len(host) > 253 or port > 65535:
        raise ValueError("its host or port is out of range")
    if NUMBER.fullmatch(host.rpartition(".")[2]) and not _is_address(host):
        raise ValueError(f"its host {host!r:.60} is a number; write an IPv4 address in four decimal parts")
    return host, port


def _is_address(host: str) -> bool:
    try:
        return str(IPv4Address(host)) == host
    except ValueError:
        return False
