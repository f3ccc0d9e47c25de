"""Many clients that would rather wait: ``python -m benchmarks.patience``.

Starts the service as `make run` does, without the page. Applies closed loops of 32, 200 and 2000 clients that send one
photo after another, each with 30 s of patience, and that do not heed Retry-After: the worst that clients can do. Then
one client alone competes with 200 connections of another address. Prints what was answered in time, what was refused,
the rate against that of 32 clients, the memory, and whether a process died.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.measure import WARM_UP_S, Plan
from benchmarks.report import table
from benchmarks.serving import common_flags, make_plan
from benchmarks.systems import LOCAL, OURS, Running, ours, running
from tests.support import load
from tests.support.processes import Tree, end_on_signals

FEW, MANY, CROWD = 32, 200, 2000
PATIENCE_S = 30
SAMPLE_S = 2.0
OTHER_ADDRESS = "127.0.0.2"  # Linux takes all of 127.0.0.0/8 for this machine


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=LOCAL, help="Serve config for ours")
    common_flags(parser)
    parser.set_defaults(seconds=60)
    options = parser.parse_args()
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        plan = make_plan(options, Path(folder))
        with running(ours(OURS, options.config, {}), plan.weights, plan.files[0], plan.logs / "ours.log") as server:
            load.apply(server.url, plan.images, seconds=WARM_UP_S, clients=FEW)
            loads = {str(clients): apply(server, plan, clients) for clients in (FEW, MANY, CROWD)}
            fairness = compete(server, plan)
    run = {"machine": machine.describe(sys.argv[1:]), "loads": loads, "fairness": fairness}
    print(json.dumps(run, indent=1))
    print(report(run))


def apply(server: Running, plan: Plan, clients: int) -> dict[str, Any]:
    """One closed loop, while the processes are watched."""
    before = {process.pid for process in server.tree.processes()}
    with MemoryWatch(server.tree) as watch:
        result = load.apply(
            server.url, plan.images, seconds=plan.seconds, clients=clients, timeout=PATIENCE_S, ramp=PATIENCE_S
        )
    result["failed"] = result["failed"][:3]
    after = {process.pid for process in server.tree.processes()}
    return result | {"memory_mb": watch.most_mb, "died": len(before - after)}


def compete(server: Running, plan: Plan) -> dict[str, Any]:
    """One client at a time against 200 connections of another address."""
    with ThreadPoolExecutor() as threads:
        heavy = threads.submit(
            load.apply, server.url, plan.images, seconds=plan.seconds, clients=MANY, timeout=PATIENCE_S
        )
        light = load.apply(
            server.url,
            plan.images,
            seconds=plan.seconds / 2,
            ramp=plan.seconds / 4,
            clients=1,
            timeout=PATIENCE_S,
            source=OTHER_ADDRESS,
        )
        return {"heavy": heavy.result(), "light": light}


class MemoryWatch:
    """Samples the memory of a tree's processes in a ``with`` block.

    Attributes:
        most_mb: Largest PSS of the whole tree, in MiB.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree, self._over, self.most_mb = tree, threading.Event(), 0.0

    def __enter__(self) -> MemoryWatch:
        """Start to sample."""
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop."""
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.most_mb = max(self.most_mb, sum(self._tree.memory_mb().values()))


def report(run: dict[str, Any]) -> str:
    """Return the tables."""
    base = run["loads"][str(FEW)]["images_per_s"]
    rows = []
    for clients, found in run["loads"].items():
        counts = dict(found["outcomes"])
        in_time, refused = counts.pop("200", 0), counts.pop("503", 0)
        rate = found["images_per_s"]
        p50, p99 = (round(found["latency_ms"][p] / 1000, 1) for p in ("p50", "p99"))
        ratio, memory = round(rate / base, 2), round(found["memory_mb"])
        rows.append((clients, rate, ratio, in_time, refused, counts or "none", p50, p99, memory, found["died"]))
    head = ("clients", "images/s", f"÷ {FEW}", "in time", "503", "others", "p50 s", "p99 s", "PSS MB", "processes died")
    fair = [
        (name, found["images_per_s"], found["outcomes"], *(found["latency_ms"][p] for p in ("p50", "p99")))
        for name, found in run["fairness"].items()
    ]
    return table(head, rows) + "\n\n" + table(("caller", "images/s", "outcomes", "p50 ms", "p99 ms"), fair)


if __name__ == "__main__":
    main()
