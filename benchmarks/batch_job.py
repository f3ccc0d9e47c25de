"""Compare a batch job with the in-process ceiling of the same code on the same cores, and measure its memory.

``python -m benchmarks.batch_job FOLDER`` prints JSON. The ceiling is that of `ceiling.py`: images in memory, one
process per core, no Ray, nothing written. A shared machine's speed drifts, so the ceiling is measured before and after
each job, and the mean of the two counts; several ``--rounds`` say more than one long job. A job's throughput counts
from the first part of each worker on, so without the start of Ray and model; ``images_per_s_with_start`` includes it.
Memory is the PSS of the command and of all processes that it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from benchmarks import ceiling
from serve_app.inference.card import DEMO
from tests.support.paths import ROOT
from tests.support.processes import MARK, Tree

SAMPLE_S = 5  # one sample of the memory takes 125 ms of CPU


def run_job(weights: Path, images: Path, out: Path) -> dict[str, Any]:
    """Run the command over a folder; return its image count, throughput and peak memory."""
    command = [sys.executable, "-m", "serve_app", "predict", str(images), str(out), "--weights", str(weights)]
    mark = str(os.getpid())
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, MARK: mark, "RAY_worker_niceness": "0"},  # the priority of the ceiling's processes
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    tree, samples_mb, ended = Tree(psutil.Process(process.pid), mark), [0.0], threading.Event()

    def sample_memory() -> None:
        while not ended.wait(SAMPLE_S):
            samples_mb.append(sum(tree.memory_mb().values()))

    sampler = threading.Thread(target=sample_memory)
    sampler.start()
    printed, _ = process.communicate()
    ended.set()
    sampler.join()
    if process.returncode:
        raise RuntimeError(f"the job ended with code {process.returncode}")
    summary = json.loads(printed)
    return {
        "images": summary["images"],
        "images_per_s": round(throughput(out), 1),
        "images_per_s_with_start": summary["images_per_s"],
        "peak_mb": round(max(samples_mb)),
    }


def throughput(out: Path) -> float:
    """Return images/s after each worker has written its first part."""
    parts = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in (out / "parts").glob("[!.]*"))
    workers = os.cpu_count() or 1
    return sum(rows for _, rows in parts[workers:]) / (parts[-1][0] - parts[workers - 1][0])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of some thousands of JPEG and PNG files")
    parser.add_argument("--weights", type=Path, default=DEMO, help="a .safetensors file; default: the demo model")
    parser.add_argument("--sample", type=Path, help="folder of some hundreds of files for the ceiling; default: IMAGES")
    parser.add_argument("--seconds", type=float, default=8, help="seconds of the ceiling for each batch size")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    def ceiling_per_s() -> float:
        result = ceiling.apply(options.weights, options.sample or options.images, options.seconds)
        return float(max(batch["images_per_s"] for batch in result["batches"].values()))

    ceilings, jobs = [ceiling_per_s()], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as out:
            jobs.append(run_job(options.weights, options.images, Path(out)))
        ceilings.append(ceiling_per_s())
    ratios = [
        round(job["images_per_s"] / statistics.mean(before_and_after), 3)
        for job, before_and_after in zip(jobs, pairwise(ceilings), strict=True)
    ]
    print(json.dumps({"jobs": jobs, "ceilings": ceilings, "ratios": ratios, "ratio": statistics.median(ratios)}))


if __name__ == "__main__":
    main()
