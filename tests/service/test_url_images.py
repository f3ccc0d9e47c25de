"""Images by URL on the running service: a photo is classified like its upload, and no way around the list works."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, unquote

import httpx2

from serve_app.release.rollout import ServeApi, previous_config
from tests.support.configs import tuned
from tests.support.photos import make_photo
from tests.support.running import Running
from tests.support.services import APPLY_TIMEOUT_S

PHOTO = make_photo(5, 1200, 900)
HUGE = 21 * 2**20


class Photos(http.server.BaseHTTPRequestHandler):
    """A photo at ``/photo.jpg``, redirects at ``/to/…``, and endless bytes at ``/huge``."""

    def do_GET(self) -> None:
        if self.path == "/photo.jpg":
            self._answer(200, PHOTO)
        elif self.path.startswith("/to/"):
            self._answer(302, location=unquote(self.path.removeprefix("/to/")))
        elif self.path == "/huge":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PHOTO + bytes(HUGE))
        elif self.path == "/slow":
            self.connection.recv(1)  # until the client hangs up
        else:
            self._answer(404)

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


class Quiet(http.server.ThreadingHTTPServer):
    """Says nothing about clients that hang up."""

    def handle_error(self, request: object, address: object) -> None: ...


@contextmanager
def web_server() -> Iterator[int]:
    with Quiet(("127.0.0.1", 0), Photos) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def secret() -> Iterator[tuple[int, list[object]]]:
    """A port of this machine that nobody may connect to, and the connections to it."""
    connections: list[object] = []

    def accept() -> None:
        while True:
            try:
                connections.append(listening.accept())
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listening.getsockname()[1], connections
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_photo_by_url_and_no_way_around_the_list(running: Running, cluster: ServeApi) -> None:
    before = previous_config(cluster.state())

    def send(*urls: str) -> httpx2.Response:
        return httpx2.post(f"{running.api}/v1/classify", json={"inputs": [{"url": url} for url in urls]}, timeout=60)

    with web_server() as port, secret() as (closed, connections):
        photos = f"http://localhost:{port}"
        off = send(f"{photos}/photo.jpg")
        assert (off.status_code, off.json()["code"]) == (403, "forbidden_source")
        settings = {"allowed_hosts": [photos], "allowed_networks": ["127.0.0.1/32", "::1/128"], "timeout_s": 2}
        cluster.apply(tuned(before, "Ingress", images_by_url=settings), APPLY_TIMEOUT_S)

        uploaded = httpx2.post(f"{running.api}/v1/classify", content=PHOTO).json()["results"][0]
        fetched = send(f"{photos}/photo.jpg", f"{photos}/to/%2Fphoto.jpg").json()
        assert fetched["summary"] == {"ok": 2, "failed": 0}, fetched
        for result in fetched["results"]:
            assert (result["predictions"], result["image"]) == (uploaded["predictions"], uploaded["image"])
            assert result["timings_ms"]["fetch"] > 0

        around = [
            f"http://127.0.0.1:{port}/photo.jpg", f"http://localhost:{closed}/", f"http://127.0.0.1:{closed}/",
            f"http://2130706433:{closed}/", f"http://0x7f000001:{closed}/", f"http://0177.0.0.1:{closed}/",
            f"http://127.1:{closed}/", f"http://[::1]:{closed}/", f"http://[::ffff:127.0.0.1]:{closed}/",
            f"{photos}@127.0.0.1:{closed}/", f"{photos}\\@127.0.0.1:{closed}/", f"http://localhost.:{port}/photo.jpg",
            "http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/", f"{running.dashboard}/",
            f"{running.api}/healthz", "file:///etc/passwd", "ftp://localhost/", "gopher://localhost:70/_",
        ]  # fmt: skip
        refused = [send(url) for url in around] + [send(f"{photos}/to/{quote(url, safe='')}") for url in around]
        refused += [send(f"{photos}/{path}") for path in ("missing.jpg", "slow")]
        assert [answer.status_code for answer in refused if answer.status_code not in (400, 403, 422)] == []
        redirected = refused[len(around) :]
        assert {answer.json()["code"] for answer in redirected} == {"unfetchable_image"}
        assert len({answer.json()["detail"] for answer in redirected}) == 1
        assert send(f"{photos}/huge").json()["code"] == "too_large"
        assert connections == []
    assert httpx2.get(f"{running.api}/v1/status").json()["admission"]["images"] == 0
