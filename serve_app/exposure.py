"""Whether everybody may call: an API beyond this machine needs keys, or a config that says it is open."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # HAProxy's program imports this module at each reload; pydantic would add 0.2 s
    from serve_app.config import IngressConfig

API_HOST = "SERVE_APP_API_HOST"  # environment variable: the API's address, on a machine where all else is closed
PUBLISHED_ON = "SERVE_APP_PUBLISHED_ON"  # environment variable: the address on which a container's port is published


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address; ::ffff:127.0.0.1 is 127.0.0.1 of a socket for both families.

    Args:
        host: An IP address, or a name.
    """
    try:
        plain = ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(plain, "ipv4_mapped", None) or plain).is_loopback


def reachable_host(host: str) -> str:
    """Return the address by which clients reach an API that listens on ``host``: in a container, the published one."""
    return os.environ.get(PUBLISHED_ON) or host


def check_access(config: IngressConfig, host: str, keys_before: bool) -> None:
    """Check that nobody may call by mistake.

    Args:
        config: What shall apply.
        host: Address by which clients reach the API.
        keys_before: Whether the API required keys until now.

    Raises:
        ValueError: The config has neither ``keys`` nor ``open: true``, and needs one of them.
    """
    if config.keys.required or config.open:
        return
    if keys_before:
        raise ValueError(
            "keys: the API required a key until now, and this config names none: keep `keys`, "
            "or set `open: true` to let everybody call"
        )
    if not is_loopback(host):
        raise ValueError(
            f"keys: the API is reachable on {host}, beyond this machine, and everybody could call it: set `keys`, "
            "or `open: true` (`serve-app run --open`) if something in front of it decides who may call"
        )
