"""Traffic between two model variants and live weights on real Ray Serve, under load."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from safetensors.torch import load_file

from serve_app.config import WeightsConfig
from serve_app.inference.card import DEMO, load_card
from serve_app.inference.weights import publish
from serve_app.release.rollout import ServeApi, previous_config
from serve_app.release.serve_config import Config
from tests.conftest import make_photo
from tests.support.configs import tuned
from tests.support.constant_load import ConstantLoad, Seen
from tests.support.running import Running

RATE = 15
CAPACITY = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}}


def demo_as(version: str, folder: Path) -> dict[str, str | None]:
    """Publish the demo model under another version whose labels name that version; return its weights config."""
    card = load_card(WeightsConfig(source="demo"))
    labels = tuple(f"{label} by {version}" for label in card.labels)
    fields = {"name": card.name, "version": version, "labels": labels, "transform": card.transform}
    state = load_file(DEMO)
    state["fc.bias"] = state["fc.bias"] + len(version) / 1000  # changes the hash, not the scores
    digest = publish(state, fields, folder / version).sha256
    return WeightsConfig(source=str(folder / version / "model.safetensors"), sha256=digest).model_dump()


def variant(name: str, weights: object) -> Config:
    return {
        "name": name,
        "route_prefix": None,
        "import_path": "serve_app.app:build_model",
        "args": {"weights": weights},
        "deployments": [
            {"name": "Preprocessor", **CAPACITY},
            {"name": "Classifier", **CAPACITY, "user_config": {"max_batch_size": 8, "max_batch_wait_ms": 0}},
        ],
    }


class Operator:
    """Changes the user_config of deployments and reads the results."""

    def __init__(self, running: Running, folder: Path) -> None:
        self.api, self.folder, self.serve = running.api, folder, ServeApi(running.dashboard)
        self.config = previous_config(self.serve.state())

    def deploy(self) -> None:
        self.serve.apply(self.config, 200)

    def change(self, app: str, deployment: str, **user_config: object) -> None:
        """Deploy a config with changed user_config values of one deployment."""
        self.config = tuned(self.config, deployment, app, **user_config)
        self.deploy()

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = httpx2.get(f"{self.api}/v1/status", timeout=30).json()
        return status

    def classify(self, **headers: str) -> httpx2.Response:
        return httpx2.post(f"{self.api}/v1/classify", content=make_photo(), headers=headers, timeout=60)

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.status()
            time.sleep(0.2)

    def version(self) -> str:
        """The version that answers a request without X-Model."""
        return self.classify().headers["x-model-version"]


@pytest.fixture
def operator(running: Running, tmp_path: Path) -> Iterator[Operator]:
    """A service with the variants blue and green besides `main`; the config of before returns after the test."""
    operator = Operator(running, tmp_path)
    before = copy.deepcopy(operator.config)
    operator.config["applications"] += [variant(name, demo_as(name, tmp_path)) for name in ("blue", "green")]
    try:
        operator.deploy()
        yield operator
    finally:
        operator.serve.apply(before, 200)


def check_labels(responses: list[Seen]) -> None:
    """Each response has the labels of the version that it names."""
    for response in responses:
        assert response.said is not None
        assert response.said.partition(" by ")[2] == ("" if response.version == "demo-1" else response.version)


def test_variants_and_weights_change_without_a_failed_request(operator: Operator) -> None:
    """Traffic moves main -> both -> green -> blue, then blue changes its weights; labels match the version."""
    load = ConstantLoad(f"{operator.api}/v1/classify", make_photo(), RATE)
    with load.running():
        operator.change("classify", "Ingress", traffic={"blue": 50, "green": 50})
        operator.wait_for(lambda: {operator.version() for _ in range(10)} == {"blue", "green"})

        assert operator.classify(**{"X-Model": "green"}).headers["x-model-version"] == "green"
        missing = operator.classify(**{"X-Model": "gren"})
        assert (missing.status_code, missing.json()["code"]) == (404, "unknown_model")
        first = {client: operator.classify(**{"X-Sticky": client}).json()["model"]["version"] for client in "abcdefgh"}
        again = {client: operator.classify(**{"X-Sticky": client}).json()["model"]["version"] for client in "abcdefgh"}
        assert first == again
        assert set(first.values()) == {"blue", "green"}

        for name in ("green", "blue"):
            operator.change("classify", "Ingress", traffic={"blue": 0, "green": 0} | {name: 1}, shadow="green")
            operator.wait_for(lambda name=name: operator.version() == name)
        operator.wait_for(lambda: operator.status()["traffic"]["shadow"]["compared"] > 3)

        operator.change("classify", "Ingress", traffic={"gren": 1}, shadow=None)
        operator.wait_for(lambda: "gren" in (operator.status()["traffic"]["waiting_for"] or ""))
        assert operator.version() == "blue"
        operator.change("classify", "Ingress", traffic={"blue": 1})

        operator.change("blue", "Classifier", weights=demo_as("teal", operator.folder))
        operator.wait_for(lambda: operator.version() == "teal")
        operator.change("blue", "Classifier", weights=demo_as("cyan", operator.folder) | {"sha256": "0" * 64})
        operator.wait_for(lambda: operator.status()["variants"]["blue"]["refused"])
        status = operator.status()["variants"]["blue"]
        assert "sha256" in status["refused"]
        assert status["model"]["version"] == operator.version() == "teal"
        operator.change("blue", "Classifier", weights=None)
        operator.wait_for(lambda: operator.version() == "blue")
    assert [dataclasses.asdict(response) for response in load.failed()] == []
    check_labels(load.seen)
    assert set(load.versions()) == {"demo-1", "blue", "green", "teal"}
    assert len(load.seen) > RATE * 10
