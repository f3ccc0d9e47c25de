"""What a batch job at full speed costs the requests beside it: ``python -m benchmarks.beside_job``.

Measures how many photos a second the service can do, then, in turn, their latencies at a share of that alone and beside
a job over /v1/jobs that has enough to do. Prints JSON.
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

COPIES = 60  # of each photo in the job's zip, which stays under its limit of 500 MB
POLL_S = 1.0
START_S = 180


def submit(api: str, archive: Path) -> str:
    """Send a job; gives its address once its first images are done."""
    with archive.open("rb") as file:
        sent = httpx2.post(f"{api}/v1/jobs", content=file, headers={"content-type": "application/zip"}, timeout=300)
    sent.raise_for_status()
    job = api + sent.headers["location"]
    until = time.monotonic() + START_S
    while not done(job):
        if time.monotonic() > until:
            sys.exit(f"the job has not begun within {START_S} s: {httpx2.get(job).json()}")
        time.sleep(POLL_S)
    return job


def done(job: str) -> int:
    """Images that a job has done."""
    return int(httpx2.get(job, timeout=60).json()["progress"]["done"])


def measure(api: str, photos: Path, archive: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Latencies alone and beside a job, in turn."""
    url = f"{api}/v1/classify"
    p99: dict[str, list[float]] = {"alone": [], "beside": []}
    capacity = load.apply(url, photos, seconds=CAPACITY_S, ramp=5)["images_per_s"]
    say(f"capacity: {capacity:.1f} photos/s")
    paces, failures = [], 0
    for number in range(options.rounds):
        for state in p99:
            if state == "beside":
                job, start = submit(api, archive), time.monotonic()
                before = done(job)
            found = load.apply(url, photos, rate=options.load * capacity, seconds=options.seconds, seed=number)
            p99[state].append(found["latency_ms"]["p99"])
            failures += found["failures"]
            if state == "beside":
                paces.append((done(job) - before) / (time.monotonic() - start))
                if httpx2.get(job, timeout=60).json()["status"] != "running":
                    sys.exit("the job ended too soon: give more --copies")
                httpx2.delete(job, timeout=60).raise_for_status()
                time.sleep(10)  # its workers end
            say(f"{state}: p99 {found['latency_ms']['p99']:.0f} ms")
    ratios = [beside / alone for alone, beside in zip(p99["alone"], p99["beside"], strict=True)]
    return {
        "capacity_per_s": round(capacity, 1),
        "p99_ms": p99,
        "beside/alone": [round(ratio, 2) for ratio in ratios],
        "median": round(statistics.median(ratios), 2),
        "job_images_per_s": [round(pace, 1) for pace in paces],
        "failures": failures,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=float, default=0.5, help="share of the photos a second that it can do at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40, help="each")
    parser.add_argument("--copies", type=int, default=COPIES, help="of each of 64 photos in the job")
    parser.add_argument("--replicas", type=int, default=1, help="of each stage")
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
            found = measure(api, folder / "photos", folder / "job.zip", options)
    print(json.dumps(found | {"machine": machine.describe(sys.argv[1:])}, indent=1))


if __name__ == "__main__":
    main()
