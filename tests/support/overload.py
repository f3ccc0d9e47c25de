"""Ten times the load that a running service can take: ``python -m tests.support.overload URL IMAGES``.

Measures the capacity, the latency at 80 % of it, the responses to ten times as much, and the recovery. Samples the
memory of the ingress replicas meanwhile. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil

from tests.support.http_client import Client, Sample, format_requests, image_files
from tests.support.load import closed_loop, open_loop, percentiles

REFUSED = ("429", "503")
CLIENTS = 16


def latencies(samples: Sequence[Sample], outcomes: Sequence[str]) -> dict[str, float | None]:
    """Return percentiles from sending a request to its response, in ms."""
    return percentiles([(s.end - s.sent) * 1000 for s in samples if s.outcome in outcomes])


class Watch:
    """Checks an overloaded service five times a second: health, one image, the ingress replicas' memory.

    Attributes:
        health_ms: Time of both health requests, for each check.
        refused: Images refused with 429 or 503.
        without_retry_after: Of those, responses without Retry-After or with another code than ``overloaded``.
        unanswered: Requests that failed in transport.
        rss_mb: Resident memory of ingress replicas and HAProxy, for each check.
    """

    def __init__(self, url: str, image: bytes) -> None:
        """Check while an ``async with`` block runs.

        Args:
            url: Base URL of the service.
            image: Encoded image to post.
        """
        self._url, self._image = url, image
        self.health_ms: list[float] = []
        self.without_retry_after = 0
        self.refused = self.unanswered = 0
        self.rss_mb: list[float] = []

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._check())
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # any other exception fails the test
            await self._task

    async def _check(self) -> None:
        async with httpx2.AsyncClient(base_url=self._url, timeout=10) as http:
            while True:
                start = time.perf_counter()
                try:
                    for path in ("/healthz", "/readyz"):
                        (await http.get(path)).raise_for_status()
                    self.health_ms.append((time.perf_counter() - start) * 1000)
                    answer = await http.post("/v1/classify", content=self._image)
                except httpx2.TransportError:
                    self.unanswered += 1
                    continue
                if str(answer.status_code) in REFUSED:
                    self.refused += 1
                    if int(answer.headers.get("retry-after", 0)) < 1 or answer.json()["code"] != "overloaded":
                        self.without_retry_after += 1
                self.rss_mb.append(ingress_rss_mb())
                await asyncio.sleep(0.2)


def ingress_rss_mb() -> float:
    """Return the resident memory of all ingress replicas and HAProxy processes of this machine, in MiB."""
    total = 0
    for process in psutil.process_iter(["name", "cmdline", "memory_info"]):
        words = " ".join(process.info["cmdline"] or ())
        if process.info["memory_info"] and (":Ingress" in words or process.info["name"] == "haproxy"):
            total += process.info["memory_info"].rss
    return total / 2**20


async def try_overload(
    url: str, images: Path, seconds: float, times: float = 10, clients: int | None = None
) -> dict[str, Any]:
    """Overload a running service and return the measurements.

    Args:
        url: Base URL of the service.
        images: Folder of images.
        seconds: Duration of the overload.
        times: Rate of the overload, as a multiple of the capacity.
        clients: Closed-loop clients instead of that rate.
    """
    target = urlsplit(url + "/v1/classify")
    files = image_files(images)
    requests = format_requests(target, files, 1, None)

    def client() -> Client:
        return Client(target, requests, 60)

    async def timed(load: Client, run: Any) -> tuple[Client, float]:
        start = time.perf_counter()
        await run
        return load, time.perf_counter() - start

    warm, full = client(), client()
    await closed_loop(warm, CLIENTS, time.perf_counter() + 3)
    _, took = await timed(full, closed_loop(full, CLIENTS, time.perf_counter() + seconds / 4))
    capacity = len(full.samples) / took
    calm = client()
    await open_loop(calm, 0.8 * capacity, time.perf_counter() + seconds / 2, 1)
    before = ingress_rss_mb()
    storm = client()
    async with Watch(url, files[0].read_bytes()) as watch:
        until = time.perf_counter() + seconds
        if clients:
            await closed_loop(storm, clients, until)
        else:
            await open_loop(storm, times * capacity, until, 2)
    end = time.perf_counter()
    after = client()
    await open_loop(after, 0.5 * capacity, end + 6, 3)
    late = [s for s in after.samples if s.sent > end + 5 or s.outcome != "200"]
    return {
        "capacity_per_s": round(capacity, 1),
        "at_80_percent": {"outcomes": outcomes(calm), "ms": latencies(calm.samples, ["200"])},
        "overload": {
            "offered_per_s": round(len(storm.samples) / seconds, 1),
            "outcomes": outcomes(storm),
            "accepted_per_s": round(outcomes(storm).get("200", 0) / seconds, 1),
            "accepted_ms": latencies(storm.samples, ["200"]),
            "refused_ms": latencies(storm.samples, REFUSED),
        },
        "watch": {
            "health_ms": percentiles(watch.health_ms),
            "unanswered": watch.unanswered,
            "refusals_read": watch.refused,
            "without_retry_after": watch.without_retry_after,
            "ingress_mb_before_most_end": [round(mb) for mb in (before, max(watch.rss_mb), watch.rss_mb[-1])],
        },
        "afterwards": {
            "outcomes": outcomes(after),
            "last_refusal_s": round(max([s.sent - end for s in after.samples if s.outcome != "200"], default=0), 2),
            "fifth_second_ms": latencies([s for s in late if s.outcome == "200"], ["200"]),
        },
    }


def outcomes(client: Client) -> dict[str, int]:
    """Count the requests by outcome."""
    return dict(Counter(sample.outcome for sample in client.samples))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("images", type=Path, help="folder of JPEG and PNG files")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=10, help="multiple of the capacity that is measured first")
    parser.add_argument("--clients", type=int, help="closed-loop clients instead of --times")
    options = parser.parse_args()
    done = asyncio.run(try_overload(options.url, options.images, options.seconds, options.times, options.clients))
    print(json.dumps(done, indent=1))


if __name__ == "__main__":
    main()
