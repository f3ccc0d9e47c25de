"""What the machine could do without serving: our decoding and our model in one process per core, no HTTP.

``python -m benchmarks.ceiling WEIGHTS IMAGES`` prints JSON: images a second of all processes
together, each with one thread, for several batch sizes, and the time of one image when one process
has the machine for itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serve_app.inference.engine import ResNetEngine
from serve_app.inference.weights import load_weights, spec_of
from serve_app.messages import ClassifyRequest
from serve_app.preprocessing.transform import preprocess
from tests.support.http_client import image_files

BATCHES = (1, 4, 8)
TOP_K = 10
MAX_PIXELS = 50_000_000
CORES = os.cpu_count() or 1
LOAD_TIMEOUT_S = 300
Images = Sequence[bytes]
Decode = Callable[[bytes], np.ndarray]
Classify = Callable[[list[np.ndarray]], Any]


def stages(weights: Path, batch: int) -> tuple[Decode, Classify]:
    """Our own decoder and engine, ready for batches of a size: the only place here that knows their interface."""
    arrays, card = load_weights(spec_of(str(weights)))
    engine = ResNetEngine(arrays, card)
    engine.warm_up(batch)
    return (
        lambda encoded: preprocess(encoded, card.transform, MAX_PIXELS).pixels,
        lambda crops: engine.classify([ClassifyRequest(crop, TOP_K) for crop in crops]),
    )


def work(index: int, weights: Path, files: Sequence[Path], seconds: float, ready: Barrier, results: Any) -> None:
    """One process: load the model once, then run each part of the plan that it takes part in."""
    torch.set_num_threads(1)
    decode, classify = stages(weights, max(BATCHES))
    images = [path.read_bytes() for path in files]
    for batch, processes in plan():
        classify([decode(image) for image in images[:batch]])
        ready.wait()
        if index < processes:
            results.put(run(decode, classify, images, batch, seconds))
        ready.wait()


def run(decode: Decode, classify: Classify, images: Images, batch: int, seconds: float) -> tuple[float, float, float]:
    """Decode and classify batches for some seconds: images/s, median ms of a batch, ms of decoding per image."""
    start, at, batches, decoding = time.perf_counter(), 0, [], 0.0
    while (begun := time.perf_counter()) < start + seconds:
        crops = [decode(images[(at + i) % len(images)]) for i in range(batch)]
        decoded = time.perf_counter()
        classify(crops)
        at += batch
        decoding += decoded - begun
        batches.append(time.perf_counter() - begun)
    return at / sum(batches), statistics.median(batches) * 1000, decoding * 1000 / at


def plan() -> list[tuple[int, int]]:
    """What is measured, one after the other: batch size, and how many processes at the same time."""
    return [*((batch, CORES) for batch in BATCHES), (1, 1)]


def measure(weights: Path, files: Sequence[Path], seconds: float) -> list[dict[str, float]]:
    """Carry the plan out: one result for each of its parts."""
    spawn = multiprocessing.get_context("spawn")
    ready, results = spawn.Barrier(CORES + 1), spawn.Queue()
    workers = [
        spawn.Process(target=work, args=(index, weights, files, seconds, ready, results)) for index in range(CORES)
    ]
    for worker in workers:
        worker.start()
    found = []
    for _, processes in plan():
        ready.wait(LOAD_TIMEOUT_S)
        parts = [results.get(timeout=seconds + LOAD_TIMEOUT_S) for _ in range(processes)]
        ready.wait(LOAD_TIMEOUT_S)
        rates, medians, decoding = zip(*parts, strict=True)
        found.append(
            {
                "images_per_s": round(sum(rates), 3),
                "batch_p50_ms": round(statistics.median(medians), 2),
                "decode_ms_per_image": round(statistics.mean(decoding), 2),
            }
        )
    for worker in workers:
        worker.join()
    return found


def apply(weights: Path, images: Path, seconds: float) -> dict[str, Any]:
    """Run this program in a process of its own, with one thread for each of torch's libraries."""
    command = [sys.executable, "-m", "benchmarks.ceiling", str(weights), str(images), f"--seconds={seconds}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, check=True)
    # What an inference runtime prints while it loads comes before.
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("images", type=Path, help="folder of JPEG and PNG files")
    parser.add_argument("--seconds", type=float, default=5, help="for each batch size")
    options = parser.parse_args()
    if not options.weights.is_file():
        parser.error(f"{options.weights}: no such file")  # else its processes would end, and we wait for them
    *parallel, lone = measure(options.weights, image_files(options.images), options.seconds)
    batches = dict(zip(BATCHES, parallel, strict=True))
    best = max(batches, key=lambda batch: batches[batch]["images_per_s"])
    print(json.dumps({"batches": batches, "best_batch": best, "processes": CORES, "lone": lone}))


if __name__ == "__main__":
    main()
