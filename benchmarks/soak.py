"""A bad day, in short: ``make soak ARGS="--minutes 30"``.

Runs the service with two replicas of each stage under a mixed load (single photos, many in one
request, broken files), changes its config and kills replicas all the while, and prints a verdict:
what was answered, how fast, and whether memory or file descriptors grew. Exit code 1: it failed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import load, machine
from benchmarks.http_client import image_files
from benchmarks.images import write_photos
from benchmarks.processes import Tree, end_on_signals, started
from benchmarks.systems import LOCAL, ROOT, free_port, tail
from serve_app.deploy.rollout import Cluster, DeployError

START_TIMEOUT_S = 180
EVENT_TIMEOUT_S = 120
SAMPLE_S = 10
MANY = 8
STAGES = ("Ingress", "Preprocessor", "Classifier")
EXPECTED = {"single": {"200"}, "many": {"200"}, "broken": {"415", "422"}}
# Memory may grow by this share of itself in the whole run before that is called a leak.
GROWTH = 0.05


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
    parser.add_argument("--rate", type=float, default=10, help="photos a second, each its own request")
    parser.add_argument("--every", type=float, default=15, help="seconds between two updates or kills")
    parser.add_argument("--config", type=Path, default=LOCAL, help="Serve config file; gets two replicas per stage")
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--updates-only", action="store_true", help="kill nothing")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, service(options, Path(folder)) as (tree, api, cluster):
        config = cluster.config()
        watch, happened = Watch(tree), []
        with ThreadPoolExecutor() as threads:
            threads.submit(watch.run)
            loads = start_loads(threads.submit, f"{api}/v1/classify", Path(folder), options)
            until = time.monotonic() + options.minutes * 60
            for event in events(cluster, config, options.updates_only):
                time.sleep(options.every)
                if time.monotonic() > until - options.every:
                    break
                happened.append(event())
            found = {name: each.result() for name, each in loads.items()}
            watch.over.set()
    result = verdict(found, happened, watch) | {"machine": machine.describe(sys.argv[1:])}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit("error: " + "; ".join(result["failures"]) if result["failures"] else 0)


class Live(Cluster):
    """A running cluster, whose config can be read back."""

    def config(self) -> dict[str, Any]:
        """Of the only application, as it was deployed."""
        (app,) = self.state()["applications"].values()
        deployed: dict[str, Any] = app["deployed_app_config"]
        return deployed

    def replicas(self, stage: str) -> list[dict[str, Any]]:
        """Those that run."""
        (app,) = self.state()["applications"].values()
        return [each for each in app["deployments"][stage]["replicas"] if each["state"] == "RUNNING"]


@contextlib.contextmanager
def service(options: argparse.Namespace, folder: Path) -> Iterator[tuple[Tree, str, Live]]:
    """The service as `make run` starts it, without the page; gives its processes, API and cluster."""
    config = yaml.safe_load(options.config.read_text())
    for deployment in config["applications"][0]["deployments"]:
        deployment["num_replicas"] = 2
    path, log, port = folder / "config.yaml", folder / "log", free_port()
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", "serve_app", "--no-page", f"--config={path}", f"--port={port}"]
    with started([*command, f"--weights={options.weights}"], ROOT, {}, log) as (tree, process):
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (ready := re.search(r"ADDRESS=(\S+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"error: the service did not start: {tail(log)}")
            time.sleep(0.5)
        yield tree, f"http://127.0.0.1:{port}", Live(ready[1])


def start_loads(submit: Callable[..., Any], url: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Three kinds of requests at once, for as long as it takes."""
    photos, broken = folder / "photos", folder / "broken"
    write_photos(photos)
    broken.mkdir()
    for number, path in enumerate(image_files(photos)[:8]):
        data = path.read_bytes()
        (broken / path.name).write_bytes(data[: len(data) // 2] if number % 2 else b"no image at all")
    common = {"seconds": options.minutes * 60, "timeout": 60}
    return {
        "single": submit(load.apply, url, photos, rate=options.rate, **common),
        "many": submit(load.apply, url, photos, rate=options.rate / 2, per_request=MANY, **common),
        "broken": submit(load.apply, url, broken, rate=1.0, seed=1, **common),
    }


def events(cluster: Live, config: dict[str, Any], updates_only: bool) -> Iterator[Callable[[], str]]:
    """What happens to the service, one after the other, without an end."""
    kills = [lambda stage=stage: kill(cluster, stage) for stage in STAGES]
    for number in itertools.count():
        yield lambda number=number: update(cluster, config, number)
        if not updates_only:
            yield kills[number % len(kills)]


def update(cluster: Live, config: dict[str, Any], number: int) -> str:
    """Other user_config values, as an operator would deploy them."""
    changed = copy.deepcopy(config)
    for deployment in changed["deployments"]:
        if deployment["name"] == "Ingress":
            deployment["user_config"]["top_k"] = 5 + number % 5
        if deployment["name"] == "Classifier":
            deployment["user_config"]["max_batch"] = 4 + number % 5
    try:
        cluster.apply({"applications": [changed]}, EVENT_TIMEOUT_S)
    except DeployError as error:
        return f"update failed: {error}"
    return "update"


def kill(cluster: Live, stage: str) -> str:
    """SIGKILL one of a stage's replicas, and wait until there are as many as before."""
    before = cluster.replicas(stage)
    psutil.Process(before[0]["pid"]).kill()
    gone, deadline = before[0]["replica_id"], time.monotonic() + EVENT_TIMEOUT_S
    while time.monotonic() < deadline:
        now = cluster.replicas(stage)
        if len(now) == len(before) and gone not in {each["replica_id"] for each in now}:
            return f"kill {stage}"
        time.sleep(1)
    return f"kill failed: no new {stage} within {EVENT_TIMEOUT_S} s"


def verdict(found: dict[str, Any], happened: list[str], watch: Watch) -> dict[str, Any]:
    """Everything that was seen, and the sentences that make it a failure."""
    failures = [event for event in happened if "failed" in event]
    for name, expected in EXPECTED.items():
        if wrong := {outcome: n for outcome, n in found[name]["outcomes"].items() if outcome not in expected}:
            failures.append(f"{name}: {wrong} of {found[name]['requests']} requests")
    growth = {"memory_mb": slope(watch.at_s, watch.memory_mb), "descriptors": slope(watch.at_s, watch.descriptors)}
    for name, grown in growth.items():
        if grown["in_all"] > max(GROWTH * grown["median"], 2 * grown["noise"]):
            failures.append(f"{name} grew by {grown['in_all']:.0f} from about {grown['median']:.0f}")
    return {
        "failures": failures,
        "events": {kind: happened.count(kind) for kind in sorted(set(happened))},
        "loads": {
            name: {key: each[key] for key in ("requests", "outcomes", "latency_ms")} for name, each in found.items()
        },
        "growth": growth,
    }


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
