"""A bad day, in short: ``make soak ARGS="--minutes 30"``.

Runs the service with two replicas of each stage under a mixed load (single photos, many in one
request, broken files) of a share of what it can do, while it is updated and its processes are killed
(tests/support/bad_day.py), and prints a verdict: what was answered, how fast, and whether memory or
file descriptors grew. Exit code 1: it failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks import machine
from benchmarks.images import write_photos
from benchmarks.systems import LOCAL, ROOT, tail
from serve_app.launcher.environment import free_port
from serve_app.release.rollout import DeployError, ServeApi
from serve_app.release.serve_config import read
from tests.support import load
from tests.support.bad_day import BadDay, EventError
from tests.support.configs import write
from tests.support.http_client import image_files
from tests.support.processes import Tree, end_on_signals, started

START_TIMEOUT_S = 180
SAMPLE_S = 10
CAPACITY_S = 20
MANY = 8
EVENTS = ("update", "kill Classifier", "restart", "kill Preprocessor", "weights", "kill Ingress", "replicas")
EXPECTED = {"single": {"200"}, "many": {"200"}, "broken": {"415", "422"}}
# Memory that grows by more than this share during the run counts as a leak.
GROWTH = 0.05


class Event(NamedTuple):
    """What happened to the service, and when, by the monotonic clock."""

    kind: str
    start: float
    failed: str | None = None


@dataclass
class Watch:
    """What the service's processes hold, sampled."""

    tree: Tree
    over: threading.Event = field(default_factory=threading.Event)
    at_s: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Sample until it is over."""
        while not self.over.wait(SAMPLE_S):
            self.at_s.append(time.monotonic())
            self.memory_mb.append(sum(self.tree.memory_mb().values()))
            self.descriptors.append(sum(_descriptors(process) for process in self.tree.processes()))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--load", type=float, default=0.6, help="share of the photos a second that it can do at most")
    parser.add_argument("--every", type=float, default=10, help="seconds between two events")
    parser.add_argument("--events", default=",".join(EVENTS), help="which, in this order, again and again: %(default)s")
    parser.add_argument("--config", type=Path, default=LOCAL, help="Serve config file")
    parser.add_argument("--replicas", type=int, default=2, help="of each stage")
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, service(options, Path(folder)) as (tree, api, cluster):
        day = BadDay(cluster, api, tree, Path(folder))
        kinds = [kind for kind in options.events.split(",") if kind]
        if unknown := set(kinds) - set(day.kinds):
            parser.error(f"--events: there is no {', '.join(sorted(unknown))}; there are {', '.join(day.kinds)}")
        watch, happened = Watch(tree), []
        url, photos = f"{api}/v1/classify", write_inputs(Path(folder))
        capacity = load.apply(url, photos, seconds=CAPACITY_S, ramp=5)["images_per_s"]
        say(f"capacity: {capacity:.1f} photos/s; load: {options.load:.0%} of it")
        with ThreadPoolExecutor() as threads:
            threads.submit(watch.run)
            try:
                loads = start_loads(threads.submit, url, photos, options.load * capacity, options.minutes * 60)
                happened = one_after_the_other(day, kinds, options.every, options.minutes * 60)
                found = {name: each.result() for name, each in loads.items()}
            finally:
                watch.over.set()
    result = {"capacity_per_s": capacity, "load": options.load} | verdict(found, happened, watch)
    result["machine"] = machine.describe(sys.argv[1:])
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit("error: " + "; ".join(result["failures"]) if result["failures"] else 0)


def say(what: str) -> None:
    """Tell the user what goes on."""
    print(f"· {what}", file=sys.stderr, flush=True)


def one_after_the_other(day: BadDay, kinds: list[str], every_s: float, for_s: float) -> list[Event]:
    """Let things happen until the time is over; gives what did."""
    happened: list[Event] = []
    until = time.monotonic() + for_s
    for kind, event in day.events(kinds) if kinds else ():
        if time.monotonic() + 2 * every_s > until:
            break
        time.sleep(every_s)
        start, failed = time.monotonic(), None
        try:
            event()
        except (DeployError, EventError) as error:
            failed = str(error)
        happened.append(Event(kind, start, failed))
        say(f"{kind}{f' failed: {failed}' if failed else ''} ({time.monotonic() - start:.1f} s)")
    return happened


@contextlib.contextmanager
def service(options: argparse.Namespace, folder: Path) -> Iterator[tuple[Tree, str, ServeApi]]:
    """The service as `make run` starts it, without the page; gives its processes, API and cluster."""
    config = read(options.config)
    for app in config["applications"]:
        for deployment in app["deployments"]:
            deployment["num_replicas"] = options.replicas
    log, port = folder / "log", free_port()
    command = [
        sys.executable,
        "-m",
        "serve_app",
        "run",
        "--no-page",
        f"--config={write(config, folder)}",
        f"--port={port}",
    ]
    with started([*command, f"--weights={options.weights}"], ROOT, {}, log) as (tree, process):
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (ready := re.search(r"ADDRESS=(\S+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"error: the service did not start: {tail(log)}")
            time.sleep(0.5)
        yield tree, f"http://127.0.0.1:{port}", ServeApi(ready[1])


def write_inputs(folder: Path) -> Path:
    """Photos, and beside them a folder of files that are none."""
    photos, broken = folder / "photos", folder / "broken"
    write_photos(photos)
    broken.mkdir()
    for number, path in enumerate(image_files(photos)[:8]):
        data = path.read_bytes()
        (broken / path.name).write_bytes(data[: len(data) // 2] if number % 2 else b"no image at all")
    return photos


def start_loads(submit: Callable[..., Any], url: str, photos: Path, rate: float, seconds: float) -> dict[str, Any]:
    """Three kinds of requests at once: two thirds of the photos in single requests, one third many per request."""
    common = {"seconds": seconds, "timeout": 60}
    return {
        "single": submit(load.apply, url, photos, rate=rate * 2 / 3, **common),
        "many": submit(load.apply, url, photos, rate=rate / 3, per_request=MANY, **common),
        "broken": submit(load.apply, url, photos.parent / "broken", rate=1.0, seed=1, **common),
    }


def verdict(found: dict[str, Any], happened: list[Event], watch: Watch) -> dict[str, Any]:
    """Everything that was seen, and the sentences that make it a failure."""
    failures = [f"{event.kind}: {event.failed}" for event in happened if event.failed]
    for name, expected in EXPECTED.items():
        if wrong := {outcome: n for outcome, n in found[name]["outcomes"].items() if outcome not in expected}:
            failed = [(at, reason) for at, outcome, reason in found[name]["failed"] if outcome not in expected]
            since = dict(Counter(latest(happened, at) for at, _ in failed))
            failures.append(f"{name}: {wrong} of {found[name]['requests']} requests, sent since {since}")
            failures += [f"one of them: {reason}" for reason in {reason: None for _, reason in failed[:3]}]
    growth = {"memory_mb": slope(watch.at_s, watch.memory_mb), "descriptors": slope(watch.at_s, watch.descriptors)}
    for name, grown in growth.items():
        if grown["in_all"] > max(GROWTH * grown["median"], 2 * grown["noise"]):
            failures.append(f"{name} grew by {grown['in_all']:.0f} from about {grown['median']:.0f}")
    return {
        "failures": failures,
        "events": dict(Counter(event.kind for event in happened)),
        "loads": {
            name: {key: each[key] for key in ("requests", "outcomes", "latency_ms")} for name, each in found.items()
        },
        "growth": growth,
    }


def latest(happened: list[Event], at: float) -> str:
    """The event that had begun last at a time."""
    return next((event.kind for event in reversed(happened) if event.start <= at), "the start")


def slope(at_s: list[float], values: list[float]) -> dict[str, float]:
    """A line through the samples after the first fifth, in which caches fill: its growth, and its distance to them."""
    at, kept = at_s[len(at_s) // 5 :], values[len(values) // 5 :]
    if len(kept) < 3:
        return {"in_all": 0.0, "noise": 0.0, "median": statistics.median(kept or [0.0])}
    line = statistics.linear_regression(at, kept)
    off = [value - (line.slope * x + line.intercept) for x, value in zip(at, kept, strict=True)]
    return {
        "in_all": round(line.slope * (at[-1] - at[0]), 1),
        "noise": round(statistics.pstdev(off), 1),
        "median": round(statistics.median(kept), 1),
    }


def _descriptors(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        found: int = process.num_fds()
        return found
    return 0


if __name__ == "__main__":
    main()
