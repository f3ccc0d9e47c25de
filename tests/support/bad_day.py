"""Updates and failures of a running service during a soak: each kind of update, and killed processes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil

from serve_app.config import WeightsConfig
from serve_app.inference.card import load_card
from serve_app.release.rollout import ServeApi, previous_config
from tests.support.configs import deployments, tuned
from tests.support.polling import wait_for
from tests.support.processes import Tree
from tests.support.weights import publish_copy

DEMO = WeightsConfig(source="demo")  # what the soak serves
TIMEOUT_S = 300
STAGES = ("Ingress", "Preprocessor", "Classifier")
PROCESSES = {"controller": "ray::ServeController", "proxy": "haproxy"}


class EventError(Exception):
    """The service did not recover from an event; the message is one sentence."""


class BadDay:
    """Does one event after the other to a service, and waits until the service has recovered from it.

    Attributes:
        kinds: The events by name. Each takes the number of its round.
    """

    def __init__(self, cluster: ServeApi, api: str, tree: Tree, folder: Path) -> None:
        """Remember the service's config.

        Args:
            cluster: Ray.
            api: Base URL of the service.
            tree: All processes of the service.
            folder: For published weights.
        """
        self._cluster, self._api, self._tree, self._folder = cluster, api, tree, folder
        self._config = previous_config(cluster.state())
        self.kinds: dict[str, Callable[[int], None]] = {
            "update": self._update,
            "restart": self._restart,
            "weights": self._weights,
            "replicas": self._replicas,
            "traffic": self._traffic,
            **{f"kill {stage}": self._replica_killer(stage) for stage in STAGES},
            **{f"kill {name}": self._process_killer(name) for name in PROCESSES},
        }

    def events(self, kinds: Sequence[str]) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield the kinds in turn without end, each with the function that does it."""
        for number in itertools.count():
            for kind in kinds:
                yield kind, lambda kind=kind, number=number: self.kinds[kind](number)

    def _configure(self, stage: str, **values: object) -> None:
        self._config = tuned(self._config, stage, **values)

    def _deploy(self) -> None:
        self._cluster.apply(copy.deepcopy(self._config), TIMEOUT_S)

    def _update(self, number: int) -> None:
        """Change user_config values."""
        self._configure("Ingress", top_k=5 + number % 5)
        self._configure("Classifier", max_batch_size=4 + number % 5)
        self._deploy()

    def _restart(self, number: int) -> None:
        """Replace every replica, by a change of the environment."""
        for app in self._config["applications"]:
            app["runtime_env"] = app.get("runtime_env", {}) | {"env_vars": {"ROLLED": str(number)}}
        self._deploy()

    def _weights(self, number: int) -> None:
        """Load other weights while the old ones serve; in odd rounds go back to those in ``args``."""
        version = f"soak-{number}"
        spec = None if number % 2 else publish_copy(DEMO, self._folder / version, version).model_dump()
        self._configure("Classifier", weights=spec)
        self._deploy()
        expected = load_card(DEMO).version if spec is None else version
        self._until(lambda: self._versions() == {expected}, f"a response of {expected}")

    def _replicas(self, number: int) -> None:
        """Add one replica to each stage; in odd rounds remove one."""
        for stage in STAGES:
            for deployment in deployments(self._config, stage):
                deployment["num_replicas"] += -1 if number % 2 else 1
        self._deploy()

    def _traffic(self, number: int) -> None:
        """Send all requests to green, in odd rounds to blue."""
        blue = number % 2
        self._configure("Ingress", traffic={"blue": 100 * blue, "green": 100 - 100 * blue})
        self._deploy()

    def _replica_killer(self, stage: str) -> Callable[[int], None]:
        def kill(_number: int) -> None:
            """SIGKILL one replica, and wait until as many run as before."""
            before = self._running(stage)
            killed = before[0]["replica_id"]
            psutil.Process(before[0]["pid"]).kill()

            def replaced() -> bool:
                now = {replica["replica_id"] for replica in self._running(stage)}
                return len(now) == len(before) and killed not in now

            self._until(replaced, f"a new replica of the {stage}")

        return kill

    def _process_killer(self, name: str) -> Callable[[int], None]:
        def kill(_number: int) -> None:
            """SIGKILL Serve's controller or HAProxy, and wait until a new process serves."""
            before = self._processes(PROCESSES[name])
            for process in before:
                process.kill()
            self._until(
                lambda: bool(set(self._processes(PROCESSES[name])) - set(before)) and self._ready(), f"a new {name}"
            )

        return kill

    def _processes(self, name: str) -> list[psutil.Process]:
        return [p for p in self._tree.processes() if p.name() == name or name in " ".join(p.cmdline()[:1])]

    def _running(self, stage: str) -> list[dict[str, Any]]:
        apps = self._cluster.state()["applications"].values()
        replicas = [replica for app in apps for replica in app["deployments"].get(stage, {}).get("replicas", ())]
        return [replica for replica in replicas if replica["state"] == "RUNNING"]

    def _versions(self) -> set[str]:
        variants = httpx2.get(f"{self._api}/v1/status", timeout=30).json()["variants"]
        return {variant["model"]["version"] for variant in variants.values()}

    def _ready(self) -> bool:
        return httpx2.get(f"{self._api}/readyz", timeout=5).status_code == 200

    def _until(self, done: Callable[[], bool], what: str) -> None:
        def recovered() -> bool:
            try:
                return done()
            except (httpx2.HTTPError, LookupError, ValueError, psutil.Error):  # the killed part does not answer yet
                return False

        try:
            wait_for(recovered, TIMEOUT_S, what)
        except AssertionError as error:
            raise EventError(str(error)) from None
