"""A web server that holds images, on loopback; a test writes its responses byte by byte."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ImageHost:
    """A running server.

    Attributes:
        port: On 127.0.0.1, or the address that the test chose.
        heads: Line and headers of each request, in the order of their arrival.
    """

    port: int
    heads: list[bytes] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return [head.split()[1].decode() for head in self.heads]


def response(body: bytes = b"", status: int = 200, **headers: str) -> bytes:
    """Return an HTTP/1.1 response; ``content_type`` is the header ``content-type``."""
    named = {"content-length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} Any\r\n{head}\r\n".encode() + body


def sends(*pieces: bytes) -> Answer:
    """Return an answer of these bytes."""

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.writelines(pieces)

    return answer


async def silent(head: bytes, writer: asyncio.StreamWriter) -> None:
    """Answer nothing until the client hangs up."""
    await writer.wait_closed()


@asynccontextmanager
async def hosting(
    answer: Answer, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None, port: int = 0
) -> AsyncIterator[ImageHost]:
    """Serve until the block ends; a connection takes one request."""
    connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections[asyncio.current_task()] = writer
        # The client hangs up in the middle, which tests want; at the end of the block the others are cut off.
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            host.heads.append(head)
            await answer(head, writer)
            await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, address, port, ssl=tls)
    host = ImageHost(listening.sockets[0].getsockname()[1])
    try:
        yield host
    finally:
        listening.close()
        for connection, writer in connections.items():
            connection.cancel()
            writer.transport.abort()
        await asyncio.gather(*connections, return_exceptions=True)
