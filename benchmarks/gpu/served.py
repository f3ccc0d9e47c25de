"""Part 5: the whole service over HTTP on this GPU, if Ray is installed: images per second and CPU by process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml

from benchmarks.gpu.common import Journal, Scale
from benchmarks.gpu.decoding import photos
from benchmarks.systems import LOCAL, ROOT, Running, ours, running
from serve_app.inference.card import DEMO
from tests.support import load
from tests.support.processes import CpuWatch

GPU_CONFIG = ROOT / "configs" / "gpu.yaml"
RAMP_S = 3
# Load -> client processes, requests in flight per process, images per request.
LOADS = {"single images": (4, 30, 1), "8 in a request": (2, 12, 8), "64 in a request": (2, 2, 64)}


def run(journal: Journal, scale: Scale) -> None:
    """Start the service and run all loads."""
    if importlib.util.find_spec("ray") is None:
        journal.section("served", lambda: {"skipped": "Ray is not installed"})
        return
    with tempfile.TemporaryDirectory(prefix="served-") as name:
        folder = Path(name)
        images = folder / "photos"
        images.mkdir()
        for number, photo in enumerate(photos(scale.pick(64, 2), os.cpu_count() or 1)):
            (images / f"{number}.jpg").write_bytes(photo)
        system = ours("ours", config(scale, folder), {})
        try:
            with running(system, DEMO, images / "0.jpg", folder / "log") as server:
                seconds = scale.pick(10, 1)
                journal.section("served/start", lambda: started(server))
                journal.section("served/lone", lambda: lone(server, images, seconds / 2))
                for each in LOADS:
                    journal.section(f"served/{each}", lambda each=each: under(each, server, images, seconds))
        except Exception as error:
            journal.section("served", lambda error=error: {"error": f"{type(error).__name__}: {error}"})


def config(scale: Scale, folder: Path) -> Path:
    """Write the config for a GPU with as many Preprocessor replicas as this machine has cores for."""
    if scale.smoke:
        return LOCAL
    found = yaml.safe_load(GPU_CONFIG.read_text())
    cores = os.cpu_count() or 1
    replicas = {"Ingress": max(1, cores // 5)}
    replicas["Preprocessor"] = max(
        1, cores - replicas["Ingress"] - 5
    )  # two cores for the Classifier, three for the clients
    for deployment in found["applications"][0]["deployments"]:
        deployment["num_replicas"] = replicas.get(deployment["name"], deployment["num_replicas"])
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


def started(server: Running) -> dict[str, Any]:
    """Return the start-up time and the service's status."""
    with urlopen(server.url.replace("/classify", "/status"), timeout=20) as answer:
        return {"start_s": server.start_s, "status": json.load(answer)}


def lone(server: Running, images: Path, seconds: float) -> dict[str, Any]:
    """Send one request at a time."""
    found = load.apply(server.url, images, seconds=seconds, clients=1)
    return {"outcomes": found["outcomes"], "latency_ms": found["latency_ms"]}


def under(name: str, server: Running, images: Path, seconds: float) -> dict[str, Any]:
    """Run a closed loop from several processes; one process would use up its core long before the GPU is busy."""
    processes, clients, per_request = LOADS[name]

    def apply(seed: int) -> dict[str, Any]:
        return load.apply(
            server.url, images, seconds=seconds, ramp=RAMP_S, clients=clients, per_request=per_request, seed=seed
        )

    with ThreadPoolExecutor(processes) as threads, CpuWatch(server.tree) as watch:
        asking = [threads.submit(apply, seed) for seed in range(processes)]
        busy = gpu_busy(seconds / 2)
        found = [each.result() for each in asking]
    return {
        "images_s": round(sum(each["images_per_s"] for each in found), 1),
        "outcomes": [each["outcomes"] for each in found],
        "p50_ms": [each["latency_ms"]["p50"] for each in found],
        "p99_ms": [each["latency_ms"]["p99"] for each in found],
        "mean_batch": [each["mean_batch_size"] for each in found],
        "cores_busy": {n: round(s / watch.wall_s, 2) for n, s in watch.by_name.items() if s / watch.wall_s > 0.02},
        "cores_busy_in_all": round(watch.machine_s / watch.wall_s, 1),
        "gpu": busy,
    }


def gpu_busy(after_s: float) -> str:
    """Read the GPU's utilization with nvidia-smi in the middle of the load."""
    time.sleep(after_s + RAMP_S)
    fields = "utilization.gpu,utilization.memory,memory.used,power.draw"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
