"""Stage 1/3 · who may call, and how often: API keys, kept as hashes, each with a rate.

``python -m serve_app.http.auth new NAME`` makes a key. It is shown once; what is stored is a line with its hash,
in a file, in an environment variable or in the config. A key has 256 random bits, so a plain sha256 hides it.
"""

from __future__ import annotations

import argparse
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
from serve_app.http.rate_limit import Bucket

LOOK_EVERY_S = 1.0
LINE = re.compile(r"(?P<name>\S+)\s+(?P<hash>[0-9a-f]{64})")
log = logging.getLogger("serve_app")


class Keys:
    """The keys that are valid now, and what is left of each one's rate at this ingress replica."""

    def __init__(self, tuning: KeysConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """Read all keys.

        Raises:
            ValueError: The file or the variable is missing, or a line in it is none.
        """
        self._tuning, self._clock = tuning, clock
        self._hashes = read_keys(tuning)
        self._looked, self._stamp = clock(), self._stat()
        self._buckets: dict[str, Bucket] = {}

    def caller(self, headers: Mapping[str, str]) -> str | None:
        """Name who sends these headers; None where everyone may call.

        Raises:
            UnauthorizedError: No key, or none of ours (401).
        """
        if not self._tuning.required:
            return None
        self._look_again()
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not key:
            raise UnauthorizedError("no API key: send it as `Authorization: Bearer …` or `X-API-Key: …`")
        found = None
        presented = hash_of(key)
        for name, known in self._hashes.items():  # all of them, however early one fits
            if hmac.compare_digest(presented, known):
                found = name
        if found is None:
            raise UnauthorizedError("this API key is not known here; it may have been revoked")
        return found

    def bucket(self, caller: str | None) -> Bucket | None:
        """What is left of a caller's rate; None where there is no limit."""
        if caller is None or self._tuning.images_per_s is None:
            return None
        if caller not in self._buckets:
            self._buckets[caller] = Bucket(self._tuning.images_per_s, self._tuning.burst, self._clock)
        return self._buckets[caller]

    def _look_again(self) -> None:
        """Read the file again if it has changed; one that cannot be read changes nothing."""
        if (now := self._clock()) - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        if (stamp := self._stat()) != self._stamp:
            self._stamp = stamp
            try:
                self._hashes = read_keys(self._tuning)
            except ValueError as error:
                log.error("the API keys stay as they were: %s", error)
            else:
                log.info("API keys read again: %d", len(self._hashes))

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = Path(self._tuning.file).stat() if self._tuning.file else None
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found else None


def hash_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(tuning: KeysConfig) -> dict[str, str]:
    """Collect name and hash of every key.

    Raises:
        ValueError: Says which line of what is none.
    """
    found = dict(tuning.hashes or {})
    try:
        if tuning.file:
            found |= _parse(Path(tuning.file).read_text(), f"keys.file {tuning.file}")
        if tuning.env:
            found |= _parse(os.environ[tuning.env], f"keys.env {tuning.env}")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"keys.file {tuning.file}: cannot be read ({error})") from None
    except KeyError:
        raise ValueError(f"keys.env {tuning.env}: no such environment variable on this node") from None
    return found


def _parse(text: str, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if (match := LINE.fullmatch(line.strip())) is None:
            raise ValueError(
                f"{where}, line {number}: not `name sha256`; make one with python -m serve_app.http.auth new NAME"
            )
        found[match["name"]] = match["hash"]
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.http.auth", description="Make an API key.")
    parser.add_argument("new", choices=["new"], help="make one")
    parser.add_argument("name", help="of who will use it, without spaces")
    name: str = parser.parse_args().name
    key = f"key_{secrets.token_urlsafe(32)}"
    line = f"{name} {hash_of(key)}"
    if LINE.fullmatch(line) is None:
        parser.error(f"{name!r}: a name without spaces")
    print(f"key, shown only now:  {key}\nline to store:        {line}")


if __name__ == "__main__":
    main()
