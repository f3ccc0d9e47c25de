"""Undo the content coding of a request's body (RFC 9110, 8.4) in bounded pieces while it arrives."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator

from starlette.datastructures import Headers

from serve_app.errors import MalformedRequestError, UnsupportedCodingError
from serve_app.settings import MiB

GZIP, DEFLATE, RAW_DEFLATE = 31, 15, -15  # zlib's argument for each format
WINDOW_BITS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": DEFLATE}
PIECE_BYTES = MiB  # most bytes that are inflated at once
FEED_BYTES = 64 * 1024  # zlib copies the rest of its input at the end of each member
MAX_MEMBERS = 4096  # of a gzip stream; block gzip (BGZF) has one per 64 KiB


def read_coding(headers: Headers) -> str | None:
    """Return the content coding of a body, None if it has none, or raise UnsupportedCodingError (415)."""
    declared = ",".join(headers.getlist("content-encoding")).lower().split(",")
    codings = [coding for each in declared if (coding := each.strip()) not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in WINDOW_BITS:
        raise UnsupportedCodingError(
            f"content encoding {', '.join(codings)!r:.40} is not supported; send gzip, deflate or none"
        )
    return codings[0]


class Inflater:
    """Inflates one body. A gzip stream may have several members (RFC 1952, 2.2); zeros after a member are padding."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._member = zlib.decompressobj(WINDOW_BITS[coding])
        self._members = 0

    async def inflate(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the inflated body in pieces of at most PIECE_BYTES; zlib works in a thread.

        Raises:
            MalformedRequestError: The body is not one complete stream of the coding (400).
        """
        async for chunk in chunks:
            pieces = self.feed(chunk)
            while piece := await asyncio.to_thread(next, pieces, b""):
                yield piece
        self.finish()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what the next bytes of the body inflate to; raise MalformedRequestError (400) if they are invalid."""
        for start in range(0, len(chunk), FEED_BYTES):
            rest = chunk[start : start + FEED_BYTES]
            while rest := self._begin_member(rest):
                try:
                    piece = self._member.decompress(rest, PIECE_BYTES)
                    while piece:
                        yield piece
                        # Only a full piece can have left output behind when all input is consumed.
                        more = self._member.unconsumed_tail
                        piece = self._member.decompress(more, PIECE_BYTES) if len(piece) == PIECE_BYTES else b""
                except zlib.error as error:
                    raise MalformedRequestError(
                        f"the body is not valid {self._coding}, which its Content-Encoding declares: {error}"
                    ) from None
                rest = self._member.unused_data if self._member.eof else b""

    def finish(self) -> None:
        """Raise MalformedRequestError (400) if the body has ended before its stream."""
        if not self._member.eof:
            raise MalformedRequestError(f"the body ends before the end of its {self._coding} stream")

    def _begin_member(self, data: bytes) -> bytes:
        """Start a member if the last one has ended; return the bytes to inflate, which are empty after padding."""
        if self._members and not self._member.eof:
            return data
        if self._members:
            data = data.lstrip(b"\0")
            if data and (self._coding == "deflate" or not data.startswith(b"\x1f")):
                raise MalformedRequestError(f"the body continues after the end of its {self._coding} stream")
        if data:
            self._members += 1
            if self._members > MAX_MEMBERS:
                raise MalformedRequestError(f"the body's gzip stream has more than {MAX_MEMBERS} members")
            # Some clients send deflate without its zlib header (RFC 9110, 8.4.1.2), whose first byte ends in 8.
            raw = self._coding == "deflate" and data[0] & 15 != 8
            self._member = zlib.decompressobj(RAW_DEFLATE if raw else WINDOW_BITS[self._coding])
        return data
