"""Measure what a batch job at full speed costs online requests: ``python -m benchmarks.beside_job``.

The benchmark finds the service's capacity in photos/s. Then it measures latencies at a fixed fraction of that capacity,
in turns without and with a job over /v1/jobs that does not end meanwhile. It prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx2

from benchmarks import machine
from benchmarks.images import write_photos
from benchmarks.soak import CAPACITY_S, say, service
from tests.support import load
from tests.support.configs import local, tuned, write
from tests.support.processes import end_on_signals

COPIES = 60  # of each photo in the job's zip, which stays below the limit of 500 MB
POLL_S = 1.0
START_TIMEOUT_S = 180


def submit(api: str, archive: Path) -> str:
    """Submit a job; return its URL once its first images are done."""
    with archive.open("rb") as file:
        response = httpx2.post(f"{api}/v1/jobs", content=file, headers={"content-type": "application/zip"}, timeout=300)
    response.raise_for_status()
    job = api + response.headers["location"]
    deadline = time.monotonic() + START_TIMEOUT_S
    while not images_done(job):
        if time.monotonic() > deadline:
            sys.exit(f"the job has not begun within {START_TIMEOUT_S} s: {httpx2.get(job).json()}")
        time.sleep(POLL_S)
    return job


def images_done(job: str) -> int:
    """Return how many images a job has completed."""
    return int(httpx2.get(job, timeout=60).json()["progress"]["done"])


def measure(api: str, photos: Path, archive: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return latencies without and beside a job, measured in turns."""
    url = f"{api}/v1/classify"
    p99: dict[str, list[float]] = {"without_job": [], "beside": []}
    capacity = load.apply(url, photos, seconds=CAPACITY_S, ramp=5)["images_per_s"]
    say(f"capacity: {capacity:.1f} photos/s")
    job_throughputs, failures = [], 0
    for number in range(options.rounds):
        for state in p99:
            if state == "beside":
                job, start = submit(api, archive), time.monotonic()
                before = images_done(job)
            result = load.apply(url, photos, rate=options.load * capacity, seconds=options.seconds, seed=number)
            p99[state].append(result["latency_ms"]["p99"])
            failures += result["failures"]
            if state == "beside":
                job_throughputs.append((images_done(job) - before) / (time.monotonic() - start))
                if httpx2.get(job, timeout=60).json()["status"] != "running":
                    sys.exit("the job ended before the measurement: raise --copies")
                httpx2.delete(job, timeout=60).raise_for_status()
                time.sleep(10)  # the job's workers end
            say(f"{state}: p99 {result['latency_ms']['p99']:.0f} ms")
    ratios = [beside / without for without, beside in zip(p99["without_job"], p99["beside"], strict=True)]
    return {
        "capacity_per_s": round(capacity, 1),
        "p99_ms": p99,
        "beside/without_job": [round(ratio, 2) for ratio in ratios],
        "median": round(statistics.median(ratios), 2),
        "job_images_per_s": [round(images_per_s, 1) for images_per_s in job_throughputs],
        "failures": failures,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=float, default=0.5, help="offered load as a fraction of the capacity")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40, help="seconds of each measurement")
    parser.add_argument("--copies", type=int, default=COPIES, help="copies of each of 64 photos in the job")
    parser.add_argument("--replicas", type=int, default=1, help="replicas of each stage")
    parser.add_argument("--weights", default="demo")
    options = parser.parse_args()
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="beside-job-") as name:
        folder = Path(name)
        options.config = write(tuned(local(), "Ingress", jobs={"folder": str(folder / "jobs")}), folder)
        photos = write_photos(folder / "photos")
        with zipfile.ZipFile(folder / "job.zip", "w") as archive:
            for copy in range(options.copies):
                for path in photos:
                    archive.write(path, f"{copy}/{path.name}")
        with service(options, folder) as (_, api, _):
            result = measure(api, folder / "photos", folder / "job.zip", options)
    print(json.dumps(result | {"machine": machine.describe(sys.argv[1:])}, indent=1))


if __name__ == "__main__":
    main()
