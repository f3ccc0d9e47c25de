"""Owners of jobs: a client that serves several people, such as the page, names the person in a header.

The owner is stored with the job. A request with the header sees only that owner's jobs; a request without it sees all
jobs of its API key.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from serve_app.errors import InvalidParameterError

HEADER = "X-Job-Owner"
OWNER = re.compile(r"[\w.-]{1,128}", re.ASCII)


def read_owner(request: Request) -> str | None:
    """Return the owner that a request names, or None.

    Raises:
        InvalidParameterError: The header is no valid name (422).
    """
    owner = request.headers.get(HEADER)
    if owner is not None and not OWNER.fullmatch(owner):
        raise InvalidParameterError(f"{HEADER}: {owner!r:.80} does not match {OWNER.pattern}; send a hash of the name")
    return owner


def scoped_key(key: str | None, owner: str | None) -> str | None:
    """Return an Idempotency-Key that no other owner shares."""
    return f"{owner}\0{key}" if key and owner else key
