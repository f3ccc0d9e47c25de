"""Load client: posts images over HTTP/1.1, measures, and prints JSON.

``python -m tests.support.load URL IMAGES --clients 16`` keeps sixteen requests in flight (closed loop). With
``--rate 20`` twenty images a second arrive at random, however long the responses take (open loop); each latency counts
from the moment the request was due.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.http_client import Client, Sample, format_requests, image_files
from tests.support.paths import ROOT

PERCENTILES = (50, 90, 95, 99)
MAX_FAILED = 10_000  # failed requests listed in the summary


async def closed_loop(client: Client, clients: int, until: float) -> None:
    """Keep ``clients`` requests in flight until a time, then wait for the last responses."""

    async def client_loop() -> None:
        while (now := time.perf_counter()) < until:
            await client.post(now)

    await asyncio.gather(*(client_loop() for _ in range(clients)))


async def open_loop(client: Client, rate: float, until: float, seed: int) -> None:
    """Send requests as a Poisson process until a time, then wait for the last responses."""
    arrivals, due = random.Random(seed), time.perf_counter()
    async with asyncio.TaskGroup() as in_flight:
        while (due := due + arrivals.expovariate(rate)) < until:
            await asyncio.sleep(due - time.perf_counter())
            in_flight.create_task(client.post(due))


def summarize(samples: Sequence[Sample], start: float, end: float, images: int) -> dict[str, Any]:
    """Summarize a window of time.

    A request that lies partly in the window counts with that part. Otherwise few large requests, and those at the
    window's edges, would distort the rate.

    Args:
        samples: All requests of the run.
        start: Start of the window; requests answered before it were the warm-up.
        end: End of the window.
        images: Images per request.

    Returns:
        Counts, rates and latencies. ``failed`` lists for each failed request when it was sent (monotonic clock), its
        outcome, and the end of the response's body.
    """
    seen = [sample for sample in samples if sample.end > start]
    ok = [sample for sample in seen if sample.outcome == "200"]
    shares = (max(0.0, min(s.end, end) - max(s.sent, start)) / max(s.end - s.sent, 1e-9) for s in ok)
    batches = sum(1 / size for s in ok for size in s.batch_sizes)
    batched = sum(len(s.batch_sizes) for s in ok)
    return {
        "requests": len(seen),
        "failures": len(seen) - len(ok),
        "outcomes": dict(Counter(s.outcome for s in seen)),
        "failed": [(round(s.sent, 1), s.outcome, s.reason) for s in seen if s.outcome != "200"][:MAX_FAILED],
        "images_per_s": round(sum(shares) * images / (end - start), 3),
        "latency_ms": percentiles([(s.end - s.due) * 1000 for s in ok]),
        "late_p99_ms": percentiles([(s.sent - s.due) * 1000 for s in seen])["p99"],
        "mean_batch_size": round(batched / batches, 2) if batches else None,
    }


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean, and the nearest-rank percentiles: each is a value that occurred."""
    ordered = sorted(values)
    if not ordered:
        return {"mean": None, **{f"p{p}": None for p in PERCENTILES}}
    ranks = {f"p{p}": ordered[-(-len(ordered) * p // 100) - 1] for p in PERCENTILES}
    return {name: round(value, 2) for name, value in {"mean": sum(ordered) / len(ordered), **ranks}.items()}


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Apply the load that the command line describes, and return its summary."""
    url = urlsplit(options.url)
    field = options.field or ("images" if options.per_request > 1 else None)
    files = image_files(options.images)
    random.Random(options.seed).shuffle(files)
    client = Client(url, format_requests(url, files, options.per_request, field), options.timeout, options.source)
    cpu, start = time.process_time(), time.perf_counter() + options.ramp
    end = start + options.seconds
    if options.rate:
        await open_loop(client, options.rate / options.per_request, end, options.seed)
    else:
        await closed_loop(client, options.clients, end)
    cpu_ms = (time.process_time() - cpu) * 1000
    summary = summarize(client.samples, start, end, options.per_request)
    return {
        **summary,
        "offered_per_s": options.rate,
        "client_cpu_ms_per_request": round(cpu_ms / max(1, len(client.samples)), 3),
        "images_in_all": sum(sample.outcome == "200" for sample in client.samples) * options.per_request,
    }


def apply(url: str, images: Path, **options: float | str | None) -> dict[str, Any]:
    """Run this program in a process of its own and return its summary; ``options`` are its flags."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
    command = [sys.executable, "-m", "tests.support.load", url, str(images), *flags]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("images", type=Path, help="folder of JPEG and PNG files")
    parser.add_argument("--clients", type=int, default=16, help="requests in flight")
    parser.add_argument("--rate", type=float, help="images per second that arrive at random, instead of --clients")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--ramp", type=float, default=1, help="seconds of warm-up before those")
    parser.add_argument("--per-request", type=int, default=1, help="images per request")
    parser.add_argument("--field", help="form field for the images (default: the body, or `images` for several)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds after which a request has failed")
    parser.add_argument("--source", help="address of this machine to call from")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
