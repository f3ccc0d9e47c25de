"""A stand-in for EC2's instance metadata service, which accepts requests with a session token only (IMDSv2)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SESSION = "session"


class InstanceMetadata:
    """What one instance reads about itself.

    Attributes:
        url: Of the service.
        items: Text by path below ``/latest/meta-data/``; other paths get 404.
    """

    def __init__(self, url: str, address: str) -> None:
        self.url = url
        self.items = {"local-ipv4": address}

    def reclaim(self, after_s: float) -> datetime:
        """Announce that EC2 terminates this spot instance; return when, in whole seconds as EC2 writes it."""
        end = (datetime.now(UTC) + timedelta(seconds=after_s)).replace(microsecond=0)
        self.items["spot/instance-action"] = f'{{"action": "terminate", "time": "{end:%Y-%m-%dT%H:%M:%SZ}"}}'
        return end


@contextmanager
def instance_metadata(address: str) -> Iterator[InstanceMetadata]:
    """Serve the metadata of a spot instance with this private address, without a notice, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            asked = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            self.answer(200 if asked else 400, SESSION)

        def do_GET(self) -> None:
            if self.headers["X-aws-ec2-metadata-token"] != SESSION:
                self.answer(401, "")
            else:
                item = metadata.items.get(self.path.removeprefix("/latest/meta-data/"))
                self.answer(404 if item is None else 200, item or "")

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        metadata = InstanceMetadata(f"http://127.0.0.1:{server.server_port}", address)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield metadata
        server.shutdown()
