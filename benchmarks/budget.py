"""Where the CPU time of an image goes, process by process and step by step: ``python -m benchmarks.budget``.

Starts the service as `make run` does, without the page, keeps requests in flight, and samples the Python threads of
its replicas (py-spy, which Ray installs). A sample belongs to the step of its innermost frame that STEPS knows. Prints
CPU ms per image. *native threads* is the CPU time of a process that no Python thread used: Ray's core, gRPC.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.images import write_photos
from benchmarks.measure import WARM_UP_S
from benchmarks.report import table
from benchmarks.systems import LOCAL, OURS, ours, running
from benchmarks.weights import choose_weights
from tests.support import load
from tests.support.processes import CpuWatch, Tree, end_on_signals

REPLICAS = ("Ingress", "Preprocessor", "Classifier")
RATE = 200  # samples per second
NATIVE = "native threads"
# Step -> parts of file names. The order of the rows decides where one frame fits several.
STEPS = {
    "decode": ("serve_app/preprocessing/",),
    "engine": ("serve_app/inference/runtimes/",),
    "post-process": ("serve_app/inference/",),
    "batch": ("serve_app/batcher.py",),
    "admission": ("http/admission.py", "fair_queue.py", "rate_limit.py"),
    "parse": ("http/form_", "http/uploads.py", "http/json_body.py", "http/limited_request.py", "python_multipart/"),
    "encode": ("http/responses.py", "http/classify.py", "http/schemas.py", "pydantic/", "json/"),
    "log": ("observability/", "logging/"),
    "hand over": (
        "http/fan_out.py",
        "serve_app/routing/",
        "serve_app/deployments/",
        "ray/serve/handle.py",
        "ray/serve/_private/router.py",
        "ray/serve/_private/request_router/",
        "ray/serve/_private/replica_result.py",
        "ray/serve/_private/replica.py",
    ),
    "serialise": ("ray/_private/serialization.py", "ray/cloudpickle/"),
    "HTTP": ("uvicorn/", "starlette/", "fastapi/", "serve_app/http/"),
    "Ray": ("ray/",),
    "event loop": ("asyncio/", "concurrent/futures/", "threading.py"),  # uvloop itself has no Python frames
}
WAITING = "ray/_private/worker.py"  # py-spy takes the main thread, which waits in Ray's core, for busy


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=LOCAL, help="Serve config for ours")
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--weights", default="demo", help="demo, imagenet or a .safetensors file")
    options = parser.parse_args()
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        files = write_photos(folder / "photos")
        weights = choose_weights(options.weights, files, folder)
        with running(ours(OURS, options.config, {}), weights, files[0], folder / "ours.log") as server:
            load.apply(server.url, folder / "photos", seconds=WARM_UP_S, clients=options.clients)
            with CpuWatch(server.tree) as watch:
                plain = load.apply(
                    server.url, folder / "photos", seconds=float(options.seconds), clients=options.clients
                )
            samplers = start_samplers(server.tree, folder, options.seconds)
            time.sleep(1)
            sampled = load.apply(server.url, folder / "photos", seconds=options.seconds + 1.0, clients=options.clients)
            for sampler in samplers.values():
                sampler.wait(options.seconds + 30)
        images = plain["images_in_all"]
        processes = {name: s * 1000 / images for name, s in watch.by_name.items()}
        steps = {name: read_steps(folder / f"{name}.raw") for name in samplers}
    per_s = sampled["images_per_s"]
    budget = {name: split(processes[name], found, per_s, options.seconds) for name, found in steps.items()}
    run = {"machine": machine.describe(sys.argv[1:]), "images_per_s": plain["images_per_s"], "processes": processes}
    print(json.dumps(run | {"sampled_images_per_s": per_s, "steps": budget}, indent=1))
    print(report(processes, budget))


def start_samplers(tree: Tree, folder: Path, seconds: int) -> dict[str, subprocess.Popen[bytes]]:
    """Sample the first replica of each stage; py-spy writes a line per stack, with its number of samples."""
    samplers = {}
    for process, (name, _) in tree.cpu_s().items():
        if name in REPLICAS and name not in samplers:
            command = ["py-spy", "record", "--pid", str(process.pid), "--duration", str(seconds), "--rate", str(RATE)]
            command += ["--format", "raw", "--full-filenames", "--nonblocking", "--output", str(folder / f"{name}.raw")]
            samplers[name] = subprocess.Popen(
                [str(Path(sys.executable).with_name(command[0])), *command[1:]],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
    return samplers


def read_steps(path: Path) -> Counter[str]:
    """Return the samples of each step."""
    found: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        if WAITING not in (frames := stack.split(";"))[-1]:
            found[step_of(frames)] += int(count)
    return found


def step_of(frames: list[str]) -> str:
    """Return the step of a stack, whose innermost frame comes last."""
    for frame in reversed(frames):
        for step, parts in STEPS.items():
            if any(part in frame for part in parts):
                return step
    return "other"


def split(process_ms: float, samples: Counter[str], images_per_s: float, seconds: int) -> dict[str, float]:
    """Return CPU ms per image by step; the samples are scaled down where they exceed the CPU time of the process."""
    images = images_per_s * seconds
    sampled = {step: count * 1000 / RATE / images for step, count in samples.most_common()}
    excess = max(1.0, sum(sampled.values()) / process_ms)
    steps = {step: ms / excess for step, ms in sampled.items()}
    return steps | {NATIVE: process_ms - sum(steps.values())}


def report(processes: dict[str, float], budget: dict[str, dict[str, float]]) -> str:
    """Return two tables: CPU ms per image by process, and by step of each stage."""
    by_process = sorted(processes.items(), key=lambda item: -item[1])
    rows: list[tuple[Any, ...]] = [(name, f"{ms:.2f}") for name, ms in by_process if ms >= 0.01]
    rows.append(("all", f"{sum(processes.values()):.2f}"))
    names = list(dict.fromkeys([*STEPS, "other", NATIVE]))
    steps = [
        (step, *(f"{ms:.2f}" if (ms := budget[stage].get(step, 0.0)) >= 0.01 else None for stage in budget))
        for step in names
        if any(budget[stage].get(step, 0.0) >= 0.01 for stage in budget)
    ]
    return table(("process", "CPU ms/image"), rows) + "\n" + table(("step", *budget), steps)


if __name__ == "__main__":
    main()
