"""cluster/public_address.py: the request that a client would send, before DNS leads clients here."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from cluster import public_address
from cluster.settings import ClusterError
from tests.support.paths import ROOT

CONFIG = ROOT / "configs" / "production.yaml"
HOST = "photos.example"


class Handler(BaseHTTPRequestHandler):
    """An API with one key behind a load balancer with a certificate."""

    received: list[tuple[str, str]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, self.headers["Host"]))
        authorized = self.headers.get("Authorization") == "Bearer key"
        body: dict[str, Any] = {"model": {"version": "v"}, "results": [{"predictions": [{"score": 0.9}]}]}
        content = json.dumps(body if authorized else {"title": "no key"}).encode()
        self.send_response(200 if authorized else 401)
        self.send_header("X-Model-Version", "v")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of such a load balancer on 127.0.0.1, whose authority this process trusts."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST).configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    Handler.received = []
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_is_sent_under_the_public_name(port: int) -> None:
    """The name is in no DNS: the certificate is checked for it, and the service gets it as Host."""
    public_address.check(f"https://{HOST}", "127.0.0.1", "key", CONFIG, port)
    assert Handler.received == [("/v1/classify?top_k=3", HOST)]


@pytest.mark.parametrize(
    ("url", "key", "problem"),
    [(f"https://{HOST}", None, "status 401"), ("https://other.example", "key", "certificate verify failed")],
)
def test_a_wrong_key_or_certificate_is_named(port: int, url: str, key: str | None, problem: str) -> None:
    """After some attempts, because a new load balancer is not in AWS's DNS at once."""
    with pytest.raises(ClusterError, match=rf"{url} through 127\.0\.0\.1: .*{problem}"):
        public_address.check(url, "127.0.0.1", key, CONFIG, port)
