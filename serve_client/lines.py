"""Splits a response of JSON lines, as it arrives, into parsed lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from serve_client.session import parse_json


async def json_lines(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[Any, None]:
    """Yield each line's value; only a line feed ends a line.

    httpx2's own ``iter_lines`` also ends lines at the separators of Unicode, which file names in JSON may contain.
    """
    rest = b""
    async with aclosing(pieces):
        async for piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in filter(None, lines):
                yield parse_json(line)
    if rest:
        yield parse_json(rest)
