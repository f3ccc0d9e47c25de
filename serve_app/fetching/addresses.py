"""Which addresses an image may be fetched from: those of the public internet, and networks that the operator lists."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

# Refused whatever the operator lists: metadata services of clouds (AWS, Azure, Alibaba, Oracle), link-local,
# unspecified and multicast addresses. No image is there, and credentials may be.
NEVER = [
    ip_network(text)
    for text in (
        "0.0.0.0/8", "100.100.100.200/32", "168.63.129.16/32", "169.254.0.0/16", "192.0.0.192/32", "224.0.0.0/4",
        "::/128", "fd00:ec2::/32", "fe80::/10", "ff00::/8",
    )
]  # fmt: skip
# Special-purpose networks (IANA's registries) that `is_global` of some supported Python accepts.
SPECIAL = [
    ip_network(text)
    for text in (
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "240.0.0.0/4",  # reserved
        "2001::/23",  # IETF protocol assignments, Teredo
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
]
UNICAST_6 = ip_network("2000::/3")  # all that IANA has given out as global unicast
NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name, by the system's resolver; OSError if it has none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def check_addresses(addresses: Sequence[str], allowed: Iterable[Network]) -> None:
    """Raise ValueError unless every address may be connected to.

    A single refused address refuses the name: its owner may have added it to be the one that is taken.
    """
    allowed = list(allowed)
    for text in addresses:
        if not _is_allowed(text, allowed):
            raise ValueError(f"it leads to {text}, which is neither public nor in `images_by_url.allowed_networks`")
    if not addresses:
        raise ValueError("it has no address")


def _is_allowed(text: str, allowed: Iterable[Network]) -> bool:
    address = _target(ip_address(text))
    if any(address in network for network in NEVER):
        return False
    if any(address in network for network in allowed):
        return True
    if not address.is_global or any(address in network for network in SPECIAL):
        return False
    return address.version == 4 or address in UNICAST_6


def _target(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address stands for, else the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
