"""An HTTP/1.1 server whose responses a test writes byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Handler = Callable[[bytes], Awaitable[bytes]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve on a free loopback port until the block ends.

    Args:
        handler: Receives a request's bytes and returns the bytes of the response. The connection is closed after an
            empty response, and after one with ``Connection: close``, wherever the response ends.

    Yields:
        A URL that the server answers.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
                answer = await handler(head + await reader.readexactly(length))
                writer.write(answer)
                if not answer or b"\r\nConnection: close\r\n" in answer:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/classify"
    finally:
        listening.close()
