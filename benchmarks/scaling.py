"""How our service scales: clients, images per request, image size, Classifier replicas (``make bench-scaling``)."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from benchmarks import machine
from benchmarks.images import photo
from benchmarks.measure import LEAST_AGREEMENT, MANY, WARM_UP_S, Plan
from benchmarks.report import Spread, pick, spread, table
from benchmarks.serving import common_flags, make_plan
from benchmarks.systems import LOCAL, OURS, Running, SystemFailedError, agreement, ours, running
from tests.support import load
from tests.support.processes import end_on_signals

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
PER_REQUEST = (1, 4, 16, MANY)
# Bytes of an image -> the width and height that a camera gives a photo of so many.
SIZES = {
    50_000: (400, 300),
    100_000: (500, 375),
    500_000: (1280, 960),
    1_000_000: (2000, 1500),
    5_000_000: (4000, 3000),
}
OF_EACH_SIZE = 4
REPLICAS = (1, 2, 3, 4)
METRICS = {
    "images/s": ("images_per_s",),
    "p50 ms": ("latency_ms", "p50"),
    "p99 ms": ("latency_ms", "p99"),
    "batch": ("mean_batch_size",),
    "failures": ("failures",),
}
Sweeps = dict[str, dict[str, list[dict[str, Any]]]]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", type=Path, default=LOCAL, help="Serve config for ours")
    common_flags(parser)
    options = parser.parse_args()
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        plan = make_plan(options, Path(folder))
        sizes = write_sizes(Path(folder) / "sizes")
        sweeps: Sweeps = {}
        steps = len(CLIENTS) + len(PER_REQUEST) + len(SIZES) + len(REPLICAS)
        with tqdm(total=options.rounds * steps, unit="load") as progress:
            for number in range(options.rounds):
                for sweep, step, result in measure_round(options.config, plan, sizes, Path(folder), number):
                    progress.set_description(f"round {number + 1}, {sweep} {step}")
                    sweeps.setdefault(sweep, {}).setdefault(step, []).append(result)
                    progress.update()
    run = {"machine": machine.describe(sys.argv[1:]), "sweeps": sweeps}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "scaling.json").write_text(json.dumps(run, indent=1) + "\n")
    text = markdown(run)
    (options.out / "scaling.md").write_text(text)
    draw(sweeps, options.out / "scaling.svg")
    print(f"{text}\nwritten to {options.out}")


def measure_round(
    config: Path, plan: Plan, sizes: dict[int, Path], folder: Path, seed: int
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """All sweeps once: name of the sweep, the step in it, what was measured."""

    def apply(server: Running, images: Path = plan.images, **options: float) -> dict[str, Any]:
        return load.apply(server.url, images, seconds=plan.seconds, seed=seed, **options)

    with ready(config, plan) as server:
        for clients in CLIENTS:
            yield "clients", str(clients), apply(server, clients=clients)
        for count in PER_REQUEST:
            result = apply(server, clients=MANY // count, per_request=count)
            yield f"images per request, {MANY} in flight", str(count), result
        for size, images in sizes.items():
            yield "image size", readable(size), apply(server, images, clients=plan.clients)
    for replicas in REPLICAS:
        with ready(with_replicas(config, replicas, folder), plan) as server:
            yield "Classifier replicas", str(replicas), apply(server, clients=plan.clients)


@contextmanager
def ready(config: Path, plan: Plan) -> Iterator[Running]:
    """Our service, started, its answers checked, warm.

    Raises:
        SystemFailedError: It does not start, or computes something else than torchvision.
    """
    system = ours(OURS, config, {})
    with running(system, plan.weights, plan.files[0], plan.logs / "ours.log") as server:
        if (share := agreement(system, server.url, plan.files, plan.expected)) < LEAST_AGREEMENT:
            raise SystemFailedError(f"agrees with torchvision on only {share:.0%} of the images")
        load.apply(server.url, plan.images, seconds=WARM_UP_S, clients=plan.clients)
        yield server


def write_sizes(folder: Path) -> dict[int, Path]:
    """A folder of photos for each size."""
    folders = {}
    for size, (width, height) in tqdm(SIZES.items(), desc="making photos", leave=False):
        folders[size] = folder / str(size)
        folders[size].mkdir(parents=True)
        for i in range(OF_EACH_SIZE):
            (folders[size] / f"photo-{i}.jpg").write_bytes(photo(i, width, height, size))
    return folders


def with_replicas(config: Path, replicas: int, folder: Path) -> Path:
    """The same Serve config with so many Classifier replicas, which divide the cores among them; one stays as it is."""
    changed = yaml.safe_load(config.read_text())
    for deployment in changed["applications"][0]["deployments"]:
        if deployment["name"] == "Classifier":
            deployment.pop("autoscaling_config", None)
            deployment["num_replicas"] = replicas
            if replicas > 1:
                share = (os.cpu_count() or 1) / replicas
                cpus = int(share) if share >= 1 else int(share * 100) / 100
                deployment.setdefault("ray_actor_options", {})["num_cpus"] = cpus
    path = folder / f"replicas-{replicas}.yaml"
    path.write_text(yaml.safe_dump(changed))
    return path


def readable(size: int) -> str:
    """A file size."""
    return f"{size // 1000} kB" if size < 1_000_000 else f"{size // 1_000_000} MB"


def summary(results: list[dict[str, Any]]) -> dict[str, Spread | None]:
    """Each metric over the rounds."""
    return {name: spread([pick(result, path) for result in results]) for name, path in METRICS.items()}


def markdown(run: dict[str, Any]) -> str:
    """The report."""
    parts = ["# How our service scales\n", machine.sentence(run["machine"])]
    for sweep, steps in run["sweeps"].items():
        rows = [[step, *summary(results).values()] for step, results in steps.items()]
        parts.append(f"## {sweep[0].upper()}{sweep[1:]}\n\n" + table((sweep, *METRICS), rows))
    return "\n".join(parts)


def draw(sweeps: Sweeps, path: Path) -> None:
    """Plot, where matplotlib is installed."""
    try:
        from benchmarks import plots
    except ImportError:
        print("no plot: matplotlib is missing (make setup EXTRAS=bench)")
        return
    plots.curves(
        {
            sweep: {step: summary(results)["images/s"] for step, results in steps.items()}
            for sweep, steps in sweeps.items()
        },
        path,
    )


if __name__ == "__main__":
    main()
