"""What the prediction log costs, and what a kill costs it: ``python -m benchmarks.prediction_log cost`` or ``kill``.

``cost`` compares images a second with the log on and off in one running service, in turn. ``kill`` sends many images to
two ingress replicas, kills one with SIGKILL on the way, waits until the other has written and counts the rows that are
missing against what docs/analytics.md says: at most those of the last ``flush_s`` and of the file being written.
Images are 32 x 32 px, so that there are many.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import numpy as np
from PIL import Image

from serve_app.config import PredictionLogConfig
from serve_app.launcher.environment import read_ray_env
from serve_app.release.rollout import ServeApi, State, previous_config
from tests.support import load
from tests.support.configs import changed, local, tuned
from tests.support.http_client import Client, format_requests, image_files
from tests.support.running import Running, start

PHOTOS, SIDE_PX, SEED = 64, 32, 0
WRITE_S = 1.0  # for the file that is being written when the kill comes


def write_photos(folder: Path) -> Path:
    """Small PNGs of nothing in particular."""
    random = np.random.default_rng(SEED)
    folder.mkdir()
    for number in range(PHOTOS):
        blocks = random.integers(0, 256, (SIDE_PX // 4, SIDE_PX // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
        encoded = io.BytesIO()
        Image.fromarray(blocks).save(encoded, "PNG")
        (folder / f"{number:02}.png").write_bytes(encoded.getvalue())
    return folder


@contextmanager
def serving(replicas: int, log: dict[str, Any] | None) -> Iterator[tuple[Running, ServeApi]]:
    """Run configs/local.yaml with ``replicas`` ingress replicas and this prediction log."""
    config = changed(tuned(local(), "Ingress", prediction_log=log), "Ingress", num_replicas=replicas)
    with start(config, page=False, weights="config", environment=read_ray_env()) as running:  # Ray as in production
        yield running, ServeApi(running.dashboard)


def rows_in(log: Path) -> int:
    """Return the number of rows in complete files."""
    ((count,),) = duckdb.sql(f"SELECT count(*) FROM '{log}/raw/*.parquet'").fetchall()
    return int(count)


def cost(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Images a second with the log on and off, in turn; one replica, which takes the change live."""
    photos, log = write_photos(folder / "photos"), folder / "log"
    rates: dict[str, list[float]] = {"off": [], "on": []}
    with serving(1, None) as (running, cluster):
        config = previous_config(cluster.state())

        def measure(state: str) -> float:
            cluster.apply(tuned(config, "Ingress", prediction_log={"folder": str(log)} if state == "on" else None), 60)
            time.sleep(1)
            done = load.apply(
                f"{running.api}/v1/classify",
                photos,
                clients=options.clients,
                seconds=options.seconds,
                per_request=options.per_request,
            )
            if done["failures"]:
                sys.exit(f"requests failed: {done['outcomes']}")
            return float(done["images_per_s"])

        measure("off")  # warms up
        for number in range(options.rounds):
            for state in ("off", "on") if number % 2 == 0 else ("on", "off"):
                rates[state].append(measure(state))
    ratios = [on / off for on, off in zip(rates["on"], rates["off"], strict=True)]
    return {
        "images_per_s": {state: [round(rate, 1) for rate in found] for state, found in rates.items()},
        "on/off": [round(ratio, 3) for ratio in ratios],
        "median": round(statistics.median(ratios), 3),
        "rows": rows_in(log),
    }


def pids(state: State) -> list[int]:
    """Processes of the ingress replicas."""
    replicas = state["applications"]["classify"]["deployments"]["Ingress"]["replicas"]
    return [int(each["pid"]) for each in replicas if each["state"] == "RUNNING"]


async def send(options: argparse.Namespace, api: str, photos: Path, cluster: ServeApi) -> tuple[Client, float]:
    """Send images until enough are answered; half way kill an ingress replica.

    Returns:
        The client with its samples, and when the kill was.
    """
    url = urlsplit(f"{api}/v1/classify")
    client = Client(url, format_requests(url, image_files(photos), options.per_request, "images"), 60)
    killed = 0.0

    async def one() -> None:
        nonlocal killed
        while (done := sum(s.outcome == "200" for s in client.samples) * options.per_request) < options.images:
            if not killed and done > options.images / 2:
                killed = time.perf_counter()
                os.kill(pids(await asyncio.to_thread(cluster.state))[0], signal.SIGKILL)
                killed = time.perf_counter()
            await client.post(time.perf_counter())
            if client.samples[-1].outcome != "200":
                await asyncio.sleep(1)  # as the refusal's Retry-After asks

    await asyncio.gather(*(one() for _ in range(options.clients)))
    client.close()
    return client, killed


def kill(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Answers and rows, with a kill on the way."""
    photos, log = write_photos(folder / "photos"), folder / "log"
    flush_s = float(PredictionLogConfig.model_fields["flush_s"].default)
    start_s = time.perf_counter()
    with serving(2, {"folder": str(log)}) as (running, cluster):
        client, killed = asyncio.run(send(options, running.api, photos, cluster))
        seconds = time.perf_counter() - start_s
        time.sleep(flush_s + WRITE_S)
    answered = [sample for sample in client.samples if sample.outcome == "200"]
    late = [sample for sample in answered if killed - flush_s - WRITE_S <= sample.end <= killed]
    lost = len(answered) * options.per_request - rows_in(log)
    bound = len(late) * options.per_request
    return {
        "seconds": round(seconds, 1),
        "images answered": len(answered) * options.per_request,
        "requests that failed": dict(Counter(s.outcome for s in client.samples if s.outcome != "200")),
        "rows": rows_in(log),
        "lost": lost,
        "answered in the last flush_s before the kill, by both replicas": bound,
        "within": lost <= bound,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "kill"))
    parser.add_argument("--images", type=int, default=100_000, help="to send (kill)")
    parser.add_argument("--rounds", type=int, default=5, help="of on and off (cost)")
    parser.add_argument("--seconds", type=float, default=15, help="each (cost)")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--per-request", type=int, default=16, help="images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prediction-log-") as folder:
        report = {"cost": cost, "kill": kill}[options.what](options, Path(folder))
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
