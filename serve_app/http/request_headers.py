"""Request headers that name a request or steer Ray Serve: which values are accepted, and which reach Ray."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable

from serve_app.deadline import FORWARDED_TIMEOUT_S_HEADER, TIMEOUT_S_HEADER

RawHeaders = list[tuple[bytes, bytes]]  # as in an ASGI scope: lower-case names
REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,128}")
# W3C Trace Context, section 3.2: version, trace id, parent id, flags; later versions may add fields.
TRACEPARENT = re.compile(
    rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    rb"|(?!ff|00)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,128})?"
)
TRACESTATE = re.compile(rb"[ -~]{1,512}")  # 512 is the length that section 3.3.1.5 asks for
ACCEPTED = {b"x-request-id": REQUEST_ID, b"traceparent": TRACEPARENT, b"tracestate": TRACESTATE}
# Ray Serve obeys these. It reads - and _ in the names of the last two as the same character.
RAY_HEADERS = {b"x_request_disconnect_disabled", b"x_session_id", b"serve_multiplexed_model_id"}
RAY_PREFIX = b"x_serve_router_"  # set by Ray's request router only
NO_READ_AHEAD = (b"x-request-disconnect-disabled", b"?1")
NO_RAY_TIMEOUT = (TIMEOUT_S_HEADER.encode(), b"0")


def new_request_id() -> str:
    """Return a random request id."""
    return f"req_{uuid.uuid4().hex}"


def valid_request_id(values: Iterable[str]) -> str | None:
    """Return the client's request id, or None if it sent none, several or one that is not accepted."""
    first, *others = [*values, ""]
    is_valid = len(others) == 1 and REQUEST_ID.fullmatch(first.encode("latin-1"))
    return first if is_valid else None


def headers_for_ray(headers: RawHeaders) -> RawHeaders:
    """Return the headers that Ray Serve may see.

    Ids that are not accepted are left out, so Ray makes its own. Ray's control headers are left out too, except the
    client's timeout: it gets another name, under which only this service obeys it.
    """
    kept: RawHeaders = []
    names = [name for name, _ in headers]
    for name, value in headers:
        folded = name.replace(b"-", b"_")
        if folded in RAY_HEADERS or folded.startswith(RAY_PREFIX):
            continue
        if name in ACCEPTED and ACCEPTED[name].fullmatch(value) is None:
            continue
        if name in (b"x-request-id", b"traceparent") and names.count(name) > 1:
            continue
        kept.append((FORWARDED_TIMEOUT_S_HEADER.encode() if name == TIMEOUT_S_HEADER.encode() else name, value))
    return kept


def has_body(headers: RawHeaders) -> bool:
    """Return whether a request declares a body."""
    lengths = {value.strip() for name, value in headers if name == b"content-length"}
    return bool(lengths - {b"0"}) or any(name == b"transfer-encoding" for name, _ in headers)
