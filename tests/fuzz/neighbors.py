"""Send expensive requests beside ordinary ones, and print what the ordinary ones notice.

python -m tests.fuzz.neighbors http://127.0.0.1:8000 --dashboard http://127.0.0.1:8265

For each hostile request: the slowest of the ordinary requests that ran beside it, and the growth of the replicas'
memory. Four uploads that never end hold their connections all the time.
"""

from __future__ import annotations

import argparse
import gzip
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx2
import psutil

from tests.fuzz.amplifiers import CLASSIFY, FORM, FORMS, HEADERS, OIP
from tests.fuzz.http import replicas, send
from tests.fuzz.requests import BINARY, INFER, JSON, request
from tests.support.photos import make_photo

BODY_BYTES, PACKED_BYTES = 2**20, 2**24
SLOW_UPLOADS, SLOW_PAUSE_S = 4, 1.0
LIMIT_S, LIMIT_MIB = 1.0, 100


def hostile() -> Iterator[tuple[str, bytes]]:
    """Yield a name and the bytes of each expensive request."""
    for path, bodies in (("/v1/classify", CLASSIFY), (INFER, OIP)):
        for number, body in enumerate(bodies):
            plain, inflated = body(BODY_BYTES), body(PACKED_BYTES)
            yield f"{path} {number}: {plain[:40].decode()}", request(path, JSON, plain)
            for packed in (inflated, plain):
                yield (
                    f"{path} {number}, gzip of {len(packed) >> 20} MiB",
                    request(path, JSON, gzip.compress(packed, 9), "Content-Encoding: gzip"),
                )
    for number, body in enumerate(FORMS):
        yield f"form {number}", request("/v1/classify", FORM, body(BODY_BYTES))
    for line in HEADERS:
        yield f"header {line[:40]}", request("/v1/classify", BINARY, make_photo(), line)


class Neighbors:
    """Sends ordinary requests at a constant rate, and measures the memory of the replicas.

    Args:
        api: Address of the service.
        pids: Processes of the replicas.
        per_s: Ordinary requests per second.
    """

    def __init__(self, api: str, pids: list[int], per_s: float) -> None:
        self.seconds: list[float] = []
        self.statuses: set[int] = set()
        self.peak_mib = 0.0
        self._api, self._per_s = api, per_s
        self._processes = [psutil.Process(pid) for pid in pids]
        self._photo = make_photo()
        self._pool, self._http = ThreadPoolExecutor(64), httpx2.Client(timeout=60, limits=httpx2.Limits())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Neighbors:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._pool.shutdown()

    def reset(self) -> None:
        """Forget what was measured."""
        self.seconds, self.peak_mib = [], self.memory_mib()

    def memory_mib(self) -> float:
        """Return the resident memory of all replicas."""
        return sum(process.memory_info().rss for process in self._processes) / 2**20

    def _run(self) -> None:
        while not self._stop.wait(1 / self._per_s):
            self._pool.submit(self._ask)
            self.peak_mib = max(self.peak_mib, self.memory_mib())

    def _ask(self) -> None:
        start = time.perf_counter()
        response = self._http.post(f"{self._api}/v1/classify", content=self._photo)
        self.seconds.append(time.perf_counter() - start)
        self.statuses.add(response.status_code)


def slow_upload(address: tuple[str, int], stop: threading.Event) -> None:
    """Upload a byte per second until ``stop`` is set; start again when the service closes the connection."""
    head = request("/v1/classify", "image/jpeg", b"\xff\xd8\xff", length=2**20)
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(address, 30) as connection:
            connection.sendall(head)
            while not stop.wait(SLOW_PAUSE_S):
                connection.sendall(b"\0")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.neighbors", description=__doc__)
    parser.add_argument("api")
    parser.add_argument("--dashboard", required=True, help="of Ray: knows the replicas' process ids")
    parser.add_argument("--per-s", type=float, default=20, help="ordinary requests per second")
    options = parser.parse_args()
    parts = urlsplit(options.api)
    address = (str(parts.hostname), int(parts.port or 80))
    before, stop, bad = replicas(options.dashboard), threading.Event(), []
    with ExitStack() as stack:
        neighbors = stack.enter_context(Neighbors(options.api, list(before.values()), options.per_s))
        pool = stack.enter_context(ThreadPoolExecutor(SLOW_UPLOADS))
        stack.callback(stop.set)
        uploads: list[Future[None]] = [pool.submit(slow_upload, address, stop) for _ in range(SLOW_UPLOADS)]
        time.sleep(5)
        print(f"alone: slowest {max(neighbors.seconds):.2f} s, {neighbors.memory_mib():.0f} MiB")
        start_mib = neighbors.memory_mib()
        for name, raw in hostile():
            neighbors.reset()
            outcome = send(address, name, raw)
            time.sleep(1)
            slowest, growth = max(neighbors.seconds, default=0.0), neighbors.peak_mib - start_mib
            own = f"{outcome.status or 'closed':>6} {outcome.seconds:6.2f} s"
            print(f"{own}   {slowest:5.2f} s  {growth:+6.0f} MiB  {name}", flush=True)
            if slowest > LIMIT_S or growth > LIMIT_MIB or outcome.status >= 500:
                bad.append(name)
        assert not any(upload.done() for upload in uploads)
    print(f"statuses of the ordinary requests: {sorted(neighbors.statuses)}")
    print(f"replicas: {'the same' if replicas(options.dashboard) == before else 'others'}")
    for name in bad:
        print("BAD", name)
    sys.exit(bool(bad) or neighbors.statuses != {200} or replicas(options.dashboard) != before)


if __name__ == "__main__":
    main()
