"""What happens to a running service during a soak: updates of every kind, and processes that are killed."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil

from serve_app.config import WeightsConfig
from serve_app.inference.card import load_card
from serve_app.release.rollout import Cluster, previous_config
from tests.support.configs import deployments, tuned
from tests.support.processes import Tree
from tests.support.weights import publish_demo

TIMEOUT_S = 300
POLL_S = 0.5
PROCESSES = {"controller": "ray::ServeController", "proxy": "haproxy"}


class EventError(Exception):
    """What did not come about, in one sentence."""


class BadDay:
    """Does one thing after the other to a service, each time until it is whole again.

    Attributes:
        kinds: What it can do, by name.
    """

    def __init__(self, cluster: Cluster, api: str, tree: Tree, folder: Path) -> None:
        """Remember how the service is now.

        Args:
            cluster: Ray.
            api: Base URL of the service.
            tree: All of its processes.
            folder: For other weights.
        """
        self._cluster, self._api, self._tree, self._folder = cluster, api, tree, folder
        self._config = previous_config(cluster.state())
        self.kinds: dict[str, Callable[[int], None]] = {
            "update": self._update,
            "restart": self._restart,
            "weights": self._weights,
            "replicas": self._replicas,
            "traffic": self._traffic,
            **{f"kill {stage}": self._killer(stage) for stage in ("Ingress", "Preprocessor", "Classifier")},
            **{f"kill {name}": self._process_killer(name) for name in PROCESSES},
        }

    def events(self, kinds: Sequence[str]) -> Iterator[tuple[str, Callable[[], None]]]:
        """Name of what comes next, and what does it, without an end."""
        for number in itertools.count():
            for kind in kinds:
                yield kind, lambda kind=kind, number=number: self.kinds[kind](number)

    def _tune(self, stage: str, **values: object) -> None:
        self._config = tuned(self._config, stage, **values)

    def _deploy(self) -> None:
        self._cluster.apply(copy.deepcopy(self._config), TIMEOUT_S)

    def _update(self, number: int) -> None:
        """Other user_config values."""
        self._tune("Ingress", top_k=5 + number % 5)
        self._tune("Classifier", max_batch_size=4 + number % 5)
        self._deploy()

    def _restart(self, number: int) -> None:
        """Other code for all deployments, as far as Ray can tell: each replica is replaced."""
        for app in self._config["applications"]:
            app["runtime_env"] = app.get("runtime_env", {}) | {"env_vars": {"ROLLED": str(number)}}
        self._deploy()

    def _weights(self, number: int) -> None:
        """Other weights, loaded while the old ones serve; every other time back to those in ``args``."""
        version = f"soak-{number}"
        spec = None if number % 2 else publish_demo(self._folder / version, version).model_dump()
        self._tune("Classifier", weights=spec)
        self._deploy()
        expected = load_card(WeightsConfig(source="demo")).version if spec is None else version
        self._until(lambda: {one["version"] for one in self._models()} == {expected}, f"{expected} to answer")

    def _replicas(self, number: int) -> None:
        """One more of each stage; every other time one less."""
        for stage in ("Ingress", "Preprocessor", "Classifier"):
            for one in deployments(self._config, stage):
                one["num_replicas"] += -1 if number % 2 else 1
        self._deploy()

    def _traffic(self, number: int) -> None:
        """All requests to the other one of two variants."""
        blue = number % 2
        self._tune("Ingress", traffic={"blue": 100 * blue, "green": 100 - 100 * blue})
        self._deploy()

    def _killer(self, stage: str) -> Callable[[int], None]:
        def kill(_number: int) -> None:
            """SIGKILL one replica, and wait until there are as many as before."""
            before = self._running(stage)
            gone = before[0]["replica_id"]
            psutil.Process(before[0]["pid"]).kill()

            def whole() -> bool:
                now = self._running(stage)
                return len(now) == len(before) and gone not in {each["replica_id"] for each in now}

            self._until(whole, f"a new {stage}")

        return kill

    def _process_killer(self, name: str) -> Callable[[int], None]:
        def kill(_number: int) -> None:
            """SIGKILL Serve's controller or HAProxy, and wait for another one that answers."""
            before = {process.pid for process in self._named(PROCESSES[name])}
            for process in self._named(PROCESSES[name]):
                process.kill()
            self._until(
                lambda: bool({each.pid for each in self._named(PROCESSES[name])} - before) and self._answers(),
                f"a new {name}",
            )

        return kill

    def _named(self, name: str) -> list[psutil.Process]:
        return [each for each in self._tree.processes() if each.name() == name or name in " ".join(each.cmdline()[:1])]

    def _running(self, stage: str) -> list[dict[str, Any]]:
        apps = self._cluster.state()["applications"].values()
        found = [each for app in apps for each in app["deployments"].get(stage, {}).get("replicas", ())]
        return [each for each in found if each["state"] == "RUNNING"]

    def _models(self) -> list[dict[str, Any]]:
        variants = httpx2.get(f"{self._api}/v1/status", timeout=30).json()["variants"]
        return [one["model"] for one in variants.values()]

    def _answers(self) -> bool:
        return httpx2.get(f"{self._api}/readyz", timeout=5).status_code == 200

    def _until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                if done():
                    return
            except (httpx2.HTTPError, LookupError, ValueError, psutil.Error):  # nobody is there to say so yet
                pass
            if time.monotonic() > deadline:
                raise EventError(f"waited {TIMEOUT_S} s for {what}")
            time.sleep(POLL_S)
