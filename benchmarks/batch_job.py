"""A batch job against the in-process ceiling of the same code on the same cores, and its memory.

``python -m benchmarks.batch_job FOLDER`` prints JSON. The ceiling is `ceiling.py`'s: images in memory, one process per
core, no Ray, nothing written. It is measured before and after each job and the mean of the two counts, as a shared
machine's speed drifts; ``--rounds`` of both in turn say more than one long job. A job's pace is taken from its parts,
from the first one of each worker on, so without the start of Ray and model; ``whole`` is with it. Memory is that of the
command and all that it starts (PSS).
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
from tests.support.processes import MARK, Tree

ROOT = Path(__file__).parents[1]
SAMPLE_S = 5  # adding up the memory takes an eighth of a second of CPU


def run_job(weights: Path, images: Path, out: Path) -> dict[str, Any]:
    """Run the command over a folder: its summary, its pace and the most memory that it had."""
    command = [sys.executable, "-m", "serve_app.batch.predict", str(images), str(out), "--weights", str(weights)]
    mark = str(os.getpid())
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, MARK: mark, "RAY_worker_niceness": "0"},  # as the ceiling's processes
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    tree, most, ended = Tree(psutil.Process(process.pid), mark), [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            most.append(sum(tree.memory_mb().values()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed, _ = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"the job ended with code {process.returncode}")
    summary = json.loads(printed)
    return {
        "images": summary["images"],
        "images_per_s": round(pace(out), 1),
        "whole_images_per_s": summary["images_per_s"],
        "peak_mb": round(max(most)),
    }


def pace(out: Path) -> float:
    """Images a second, once each worker has written its first part."""
    parts = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in (out / "parts").glob("[!.]*"))
    workers = os.cpu_count() or 1
    return sum(rows for _, rows in parts[workers:]) / (parts[-1][0] - parts[workers - 1][0])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of JPEG and PNG files, some thousands of them")
    parser.add_argument("--weights", type=Path, default=DEMO, help="a .safetensors file; by default the demo model's")
    parser.add_argument(
        "--sample", type=Path, help="folder for the ceiling, some hundreds of them; by default the same"
    )
    parser.add_argument("--seconds", type=float, default=8, help="of the ceiling, for each batch size")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    def ceiling_per_s() -> float:
        found = ceiling.apply(options.weights, options.sample or options.images, options.seconds)
        return float(max(batch["images_per_s"] for batch in found["batches"].values()))

    ceilings, jobs = [ceiling_per_s()], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as out:
            jobs.append(run_job(options.weights, options.images, Path(out)))
        ceilings.append(ceiling_per_s())
    ratios = [
        round(job["images_per_s"] / statistics.mean(around), 3)
        for job, around in zip(jobs, pairwise(ceilings), strict=True)
    ]
    print(json.dumps({"jobs": jobs, "ceilings": ceilings, "ratios": ratios, "ratio": statistics.median(ratios)}))


if __name__ == "__main__":
    main()
