"""Images come from the public internet only, and from networks that the operator lists."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from serve_app.fetching.addresses import Network, check_addresses, resolve

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "198.18.0.1", "192.0.0.1", "192.0.2.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "240.0.0.1",
    "255.255.255.255",
    "::1", "fc00::1", "fd12:3456::1", "fec0::1", "2001:db8::1", "3fff::1", "2001::1", "2001:10::1", "2002:7f00:1::1",
    "2002:a00:1::", "100::1", "5f00::1", "4000::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:0:7f00:1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::808:808", "64:ff9b::c0a8:101",
]  # fmt: skip
NEVER = [
    "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "0.0.0.0", "0.1.2.3",
    "224.0.0.1", "239.255.255.250", "::", "fe80::1", "fe80::1%2", "fd00:ec2::254", "ff02::1", "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe", "::ffff:0.0.0.0",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "2606:4700::1111",
    "2a00:1450:4001::1",
    "64:ff9b::808:808",
    "::ffff:8.8.8.8",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    check_addresses([address], ())


@pytest.mark.parametrize("address", PRIVATE + NEVER)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="neither public nor in"):
        check_addresses([address], ())


def test_one_refused_address_refuses_the_name() -> None:
    """A name with a public and a private address would lead to either."""
    for addresses in (["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["2606:4700::1111", "::1"]):
        with pytest.raises(ValueError, match="neither public nor in"):
            check_addresses(addresses, ())
    with pytest.raises(ValueError, match="no address"):
        check_addresses([], ())


def test_listed_networks_are_allowed() -> None:
    check_addresses(
        ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "8.8.8.8", "fd12::1"], networks("10.1.0.0/16", "fd12::/16")
    )
    with pytest.raises(ValueError, match=r"10\.2\.0\.1"):
        check_addresses(["10.2.0.1"], networks("10.1.0.0/16"))


@pytest.mark.parametrize("address", NEVER)
def test_metadata_and_link_local_addresses_are_never_allowed(address: str) -> None:
    with pytest.raises(ValueError, match="neither public nor in"):
        check_addresses([address], networks("0.0.0.0/0", "::/0"))


async def test_the_system_resolves_names() -> None:
    assert {"127.0.0.1", "::1"} & set(await resolve("localhost", 80))


def networks(*texts: str) -> list[Network]:
    return [ip_network(text) for text in texts]
