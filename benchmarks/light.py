"""What `make run` takes from a machine: ``python -m benchmarks.light``.

Starts everything, page included, as `make run` does: first with empty caches (the compiled kernels, the runtime that
`auto` chose), then once more. Prints how long each start took until API and page answered, and the memory after 1000
requests as proportional set size (PSS: shared pages count in equal parts), with the largest processes. Exit code 1: a
goal is missed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx2
import psutil

from benchmarks import machine
from benchmarks.images import photo
from benchmarks.report import table
from benchmarks.systems import ROOT, tail
from serve_app.launcher.environment import free_port
from serve_app.paths import CACHE_VARIABLE
from tests.support import load
from tests.support.processes import Tree, end_on_signals, label, started

REQUESTS = 1000
CLIENTS = 8
START_TIMEOUT_S = 600
GOALS = {"first start s": 35.0, "second start s": 20.0, "PSS MB": 2.5 * 1024}
LARGEST = 12


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--weights", default="demo")
    options = parser.parse_args()
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        photos = folder / "photos"
        photos.mkdir()
        for number in range(16):
            (photos / f"{number}.jpg").write_bytes(photo(number, 500, 375, 100_000))
        first = run(folder, options.weights, photos, 0)
        second = run(folder, options.weights, photos, options.requests)
    found = {"first start s": first["start_s"], "second start s": second["start_s"], "PSS MB": second["pss_mb"]}
    print(json.dumps({"machine": machine.describe(sys.argv[1:]), **found, "processes": second["processes"]}, indent=1))
    print(table(("goal", "at most", "today"), [(name, goal, found[name]) for name, goal in GOALS.items()]))
    print()
    print(table(("process", "number", "PSS MB"), second["processes"][:LARGEST]))
    missed = [name for name, goal in GOALS.items() if found[name] > goal]
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


def run(folder: Path, weights: str, photos: Path, requests: int) -> dict[str, Any]:
    """Start once, send requests, and measure.

    Args:
        folder: For caches, data and log; the next run finds them.
        weights: As for `serve-app run`.
        photos: Folder of images.
        requests: Images to send before the memory is read.
    """
    port, page_port, log = free_port(), free_port(), folder / "log"
    command = [sys.executable, "-m", "serve_app", "run", f"--port={port}", f"--page-port={page_port}"]
    caches = {CACHE_VARIABLE: str(folder / "cache"), "NUMBA_CACHE_DIR": str(folder / "kernels")}
    extra = {"SERVE_APP_DATA": str(folder / "data"), **caches}
    begun = time.monotonic()
    with started([*command, f"--weights={weights}"], ROOT, extra, log) as (tree, process):
        while not re.search(r"ready in \d+ s", log.read_text()):
            if process.poll() is not None or time.monotonic() - begun > START_TIMEOUT_S:
                sys.exit(f"error: the service did not start: {tail(log)}")
            time.sleep(0.1)
        start_s = time.monotonic() - begun
        httpx2.get(f"http://127.0.0.1:{page_port}", timeout=30).raise_for_status()
        done = 0
        while done < requests:
            result = load.apply(f"http://127.0.0.1:{port}/v1/classify", photos, seconds=5, clients=CLIENTS)
            if result["failures"]:
                sys.exit(f"error: requests failed: {result['outcomes']}")
            done += result["images_in_all"]
        return {"start_s": round(start_s, 1), **memory(tree)}


def memory(tree: Tree) -> dict[str, Any]:
    """Return the PSS of all processes, and of each kind, largest first."""
    kinds: dict[str, list[float]] = defaultdict(list)
    leader = tree.processes()[0]
    for process in tree.processes():
        try:
            name = re.search(r"ray-dashboard-(\w+)", " ".join(process.cmdline()))
            kinds[name[0] if name else label(process, leader)].append(process.memory_full_info().pss / 2**20)
        except psutil.Error:
            continue
    rows = sorted(((kind, len(each), round(sum(each), 1)) for kind, each in kinds.items()), key=lambda row: -row[2])
    return {"pss_mb": round(sum(row[2] for row in rows)), "processes": rows}


if __name__ == "__main__":
    main()
