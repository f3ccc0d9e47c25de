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

READ_FILE_S = 1.0  # longest time until a change of the key file takes effect
LINE = re.compile(r"(?P<name>[^\s#]\S*)\s+(?P<hash>[0-9a-f]{64})")
log = logging.getLogger("serve_app")


class ApiKeys:
    """The valid API keys: those of ``read_keys`` at the start, and what the file holds since.

    Attributes:
        config: Where the keys are, and the limits of each.
    """

    def __init__(self, config: KeysConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config, self._clock = config, clock
        self._hashes = read_keys(config)
        self._read_s, self._problem = clock(), ""

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self.config.required

    def caller(self, headers: Mapping[str, str]) -> str | None:
        """Return the client whose key is in the headers, or raise UnauthorizedError (401); None if none is required."""
        if not self.required:
            return None
        self._refresh()
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

    def _refresh(self) -> None:
        """Read the key file again, at most once a second.

        The file is read even if its time and size are those of the last read: two changes in one tick of the file
        system's clock look like one. A key whose name is gone is revoked, whatever other lines hold. An unreadable
        file, or a malformed line for a name, leaves the old keys valid until the next read.
        """
        if self.config.file is None or (now := self._clock()) - self._read_s < READ_FILE_S:
            return
        self._read_s = now
        try:
            hashes, problems = read_keys(self.config), ""
        except MalformedKeysError as error:
            kept = {name: self._hashes[name] for name in error.names & self._hashes.keys()}
            hashes, problems = kept | error.hashes, str(error)
        except ValueError as error:
            hashes, problems = self._hashes, str(error)
        if problems and problems != self._problem:
            log.error("API keys: %s", problems)
        if hashes != self._hashes:
            log.info("API keys reloaded: %d", len(hashes))
        self._hashes, self._problem = hashes, problems


class MalformedKeysError(ValueError):
    """Lines of a key source are malformed.

    Attributes:
        hashes: The keys of all other lines.
        names: First words of the malformed lines.
    """

    def __init__(self, message: str, hashes: dict[str, str], names: set[str]) -> None:
        super().__init__(message)
        self.hashes, self.names = hashes, names


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
        MalformedKeysError: A line of the file or of the environment variable is malformed.
        ValueError: The file or the environment variable is missing.
    """
    texts: dict[str, str] = {}
    try:
        if config.file:
            texts[f"keys.file {config.file}"] = Path(config.file).read_text()
        if config.env:
            texts[f"keys.env {config.env}"] = os.environ[config.env]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"keys.file {config.file}: cannot be read ({error})") from None
    except KeyError:
        raise ValueError(f"keys.env {config.env}: no such environment variable on this node") from None
    hashes, malformed = dict(config.hashes or {}), {}
    for where, text in texts.items():
        for number, line in enumerate(map(str.strip, text.splitlines()), 1):
            if (match := LINE.fullmatch(line)) is not None:
                hashes[match["name"]] = match["hash"]
            elif line and not line.startswith("#"):
                malformed[f"{where}, line {number}"] = line.split()[0]
    if malformed:
        raise MalformedKeysError(
            f"{', '.join(malformed)}: not `name sha256`; make a line with `serve-app keys new NAME`",
            hashes,
            set(malformed.values()),
        )
    return hashes
