"""Start one system with the machine to itself, check, measure and stop it."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ceiling
from benchmarks.systems import Running, System, SystemFailedError, agreement, running
from tests.support import load
from tests.support.processes import CpuWatch, busy_s

WARM_UP_S = 5.0
QUIET_S = 3.0  # before a client counts as lone: ours gives it all cores once it has met no other for 2 s
SHARES = (50, 70, 80)  # of capacity, in percent, for the open loop
MANY = 64
# A system that differs from torchvision more often than this computes something else.
LEAST_AGREEMENT = 0.95


@dataclass(frozen=True)
class Plan:
    """What every system is measured with.

    Attributes:
        images: Folder.
        files: The images in it.
        weights: That all systems load.
        expected: Best class of each image by plain torchvision.
        seconds: Of each load.
        clients: Of the closed loop.
        logs: Folder for the systems' output.
    """

    images: Path
    files: Sequence[Path]
    weights: Path
    expected: Sequence[int]
    seconds: float
    clients: int
    logs: Path


def measure(system: System, plan: Plan, seed: int) -> dict[str, Any]:
    """Start a system, measure it, stop it.

    Returns:
        What was found; ``failed`` says why if that is not all.
    """
    result: dict[str, Any] = {}
    try:
        with running(system, plan.weights, plan.files[0], plan.logs / f"{system.name}.log") as server:
            result["start_s"] = server.start_s
            result["agreement"] = agreement(system, server.url, plan.files, plan.expected)
            if result["agreement"] < LEAST_AGREEMENT:
                raise SystemFailedError(f"agrees with torchvision on only {result['agreement']:.0%} of the images")
            result["agrees_as_it_should"] = result["agreement"] >= system.agreement
            _load(system, plan, server, seed, result)
            if system.ours:
                result["many"] = _many_images(plan, server, seed)
        result["left_behind"] = server.tree.left_behind
    except SystemFailedError as error:
        result["failed"] = str(error)
    return result


def measure_ceiling(plan: Plan) -> dict[str, Any]:
    """The machine's own limit, in the form of a system's result."""
    busy, children, start = busy_s(), _children_s(), time.perf_counter()
    found = ceiling.apply(plan.weights, plan.images, plan.seconds)
    others = (busy_s() - busy) - (_children_s() - children)
    best = found["batches"][str(found["best_batch"])]
    return {
        "closed": {"images_per_s": best["images_per_s"]},
        "lone": {"latency_ms": {"p50": found["lone"]["batch_p50_ms"]}},
        "other_cores": others / (time.perf_counter() - start),
        "ceiling": found,
    }


def _load(system: System, plan: Plan, server: Running, seed: int, result: dict[str, Any]) -> None:
    """Closed loop, one lone client, and open loops at parts of the capacity just found."""

    def apply(seconds: float, **options: float | str | None) -> dict[str, Any]:
        return load.apply(server.url, plan.images, seconds=seconds, seed=seed, field=system.form_field, **options)

    apply(min(WARM_UP_S, plan.seconds), clients=plan.clients)
    client_s = _children_s()
    with CpuWatch(server.tree) as watch:
        closed = apply(plan.seconds, clients=plan.clients)
    client_s = _children_s() - client_s
    result["closed"] = closed
    result["memory_mb"] = server.tree.memory_mb()
    images = closed["images_in_all"]
    if not images:
        raise SystemFailedError(f"no image was classified under load: {closed['outcomes']}")
    result["cpu_ms_per_image"] = {name: s * 1000 / images for name, s in watch.by_name.items()}
    result["cpu_ms_per_image_total"] = sum(watch.by_name.values()) * 1000 / images
    # What ran beside the system and the client, in cores: a measure of how quiet the machine was.
    result["other_cores"] = (watch.machine_s - sum(watch.by_name.values()) - client_s) / watch.wall_s
    time.sleep(QUIET_S)
    result["lone"] = apply(plan.seconds / 2, clients=1)
    result["open"] = {
        str(share): apply(plan.seconds, rate=max(0.5, closed["images_per_s"] * share / 100)) for share in SHARES
    }


def _many_images(plan: Plan, server: Running, seed: int) -> dict[str, Any]:
    """Keep the same number of images in flight, in one request and in separate requests."""
    options = {"seconds": plan.seconds, "seed": seed}
    together = load.apply(server.url, plan.images, clients=1, per_request=MANY, **options)
    separate = load.apply(server.url, plan.images, clients=MANY, **options)
    ratio = together["images_per_s"] / separate["images_per_s"] if separate["images_per_s"] else None
    return {"images": MANY, "one_request": together, "single_requests": separate, "ratio": ratio}


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
