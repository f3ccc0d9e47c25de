"""Authenticate requests by API key.

Only SHA-256 hashes of keys are stored: in a file, in an environment variable or in the config. Keys have
256 random bits, so guessing a key from its hash is infeasible and the hash needs neither salt nor stretching.
``serve-app keys new NAME`` makes a key.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from serve_app.config import KeysConfig
from serve_app.errors import UnauthorizedError
from serve_app.http.rate_limit import TokenBucket

CHECK_FILE_S = 1.0
LINE = re.compile(r"(?P<name>[^\s#]\S*)\s+(?P<hash>[0-9a-f]{64})")
log = logging.getLogger("serve_app")


class ApiKeys:
    """The valid API keys as ``read_keys`` returns them, and the token bucket of each key at this ingress replica."""

    def __init__(self, config: KeysConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._hashes = read_keys(config)
        self._checked_s, self._file_stamp = clock(), self._stat_file()
        self._buckets: dict[str, TokenBucket] = {}

    def caller(self, headers: Mapping[str, str]) -> str | None:
        """Return the client whose key is in the headers, or raise UnauthorizedError (401); None if none is required."""
        if not self._config.required:
            return None
        self._reload_if_changed()
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not key:
            raise UnauthorizedError("no API key: send it as `Authorization: Bearer …` or `X-API-Key: …`")
        presented = hash_key(key)
        # Compares with every hash, so the time does not tell which key comes close.
        matches = [name for name, known in self._hashes.items() if hmac.compare_digest(presented, known)]
        if not matches:
            raise UnauthorizedError("this API key is unknown or was revoked; ask the operator for a new one")
        return matches[-1]

    def bucket(self, caller: str | None) -> TokenBucket | None:
        """Return the token bucket of a client; None if no rate limit applies."""
        if caller is None or self._config.images_per_s is None:
            return None
        if caller not in self._buckets:
            self._buckets[caller] = TokenBucket(self._config.images_per_s, self._config.burst, self._clock)
        return self._buckets[caller]

    def _reload_if_changed(self) -> None:
        """Read the key file again after a change, at most once a second; an unreadable file keeps the old keys."""
        if (now := self._clock()) - self._checked_s < CHECK_FILE_S:
            return
        self._checked_s = now
        if (stamp := self._stat_file()) != self._file_stamp:
            self._file_stamp = stamp
            try:
                self._hashes = read_keys(self._config)
            except ValueError as error:
                log.error("API keys not reloaded, the previous keys stay valid: %s", error)
            else:
                log.info("API keys reloaded: %d", len(self._hashes))

    def _stat_file(self) -> tuple[int, int, int] | None:
        try:
            stat = Path(self._config.file).stat() if self._config.file else None
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat else None


def create_key(name: str) -> tuple[str, str]:
    """Return a new random key and the line ``name sha256`` to store; ValueError if the name is empty or has spaces."""
    key = f"key_{secrets.token_urlsafe(32)}"
    line = f"{name} {hash_key(key)}"
    if LINE.fullmatch(line) is None:
        raise ValueError(f"{name!r} is not a valid name: use a name without spaces that does not start with #")
    return key, line


def hash_key(key: str) -> str:
    """Return the SHA-256 of a key, in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(config: KeysConfig) -> dict[str, str]:
    """Return client name -> key hash from all configured sources.

    Raises:
        ValueError: The file or the environment variable is missing, or one of its lines is malformed.
    """
    hashes = dict(config.hashes or {})
    try:
        if config.file:
            hashes |= _parse(Path(config.file).read_text(), f"keys.file {config.file}")
        if config.env:
            hashes |= _parse(os.environ[config.env], f"keys.env {config.env}")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"keys.file {config.file}: cannot be read ({error})") from None
    except KeyError:
        raise ValueError(f"keys.env {config.env}: no such environment variable on this node") from None
    return hashes


def _parse(text: str, where: str) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if (match := LINE.fullmatch(line.strip())) is None:
            raise ValueError(f"{where}, line {number}: not `name sha256`; make a line with `serve-app keys new NAME`")
        hashes[match["name"]] = match["hash"]
    return hashes
