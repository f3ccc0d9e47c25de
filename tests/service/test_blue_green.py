"""Traffic between two model variants and live weights on real Ray Serve, under load."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve_app.release.rollout import ServeApi, previous_config
from serve_app.release.serve_config import Config
from tests.support.configs import tuned
from tests.support.constant_load import ConstantLoad, Outcome
from tests.support.photos import make_photo
from tests.support.polling import wait_for
from tests.support.running import Running
from tests.support.services import APPLY_TIMEOUT_S
from tests.support.weights import TINY_VERSION, publish_copy, tiny

RATE = 15
CAPACITY = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}}


def tiny_as(version: str, folder: Path) -> dict[str, str | None]:
    """Publish the tiny model under another version, whose labels name it."""
    return publish_copy(tiny(), folder / version, version, suffix=f" by {version}").model_dump()


def variant(name: str, weights: object, one_process: bool) -> Config:
    classifier = {"name": "Classifier", **CAPACITY, "user_config": {"max_batch_size": 8, "max_batch_wait_ms": 0}}
    return {
        "name": name,
        "route_prefix": None,
        "import_path": "serve_app.app:build_model",
        "args": {"weights": weights, "engine": {"runtime": "onnxruntime"}, "one_process": one_process},
        "deployments": [classifier] if one_process else [{"name": "Preprocessor", **CAPACITY}, classifier],
    }


class Operator:
    """Changes the user_config of one deployment after the other, and reads the service's status."""

    def __init__(self, running: Running, cluster: ServeApi, folder: Path) -> None:
        self.api, self.folder, self.cluster = running.api, folder, cluster
        self.config = previous_config(cluster.state())

    def deploy(self) -> None:
        self.cluster.apply(self.config, APPLY_TIMEOUT_S)

    def change(self, app: str, deployment: str, **user_config: object) -> None:
        """Deploy new user_config values."""
        self.config = tuned(self.config, deployment, app, **user_config)
        self.deploy()

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = httpx2.get(f"{self.api}/v1/status", timeout=30).json()
        return status

    def classify(self, **headers: str) -> httpx2.Response:
        return httpx2.post(f"{self.api}/v1/classify", content=make_photo(), headers=headers, timeout=60)

    def scores(self, variant: str) -> list[float]:
        (result,) = self.classify(**{"X-Model": variant}).json()["results"]
        return [prediction["score"] for prediction in result["predictions"]]

    def version(self) -> str:
        """Return the version that answers a request without X-Model."""
        return self.classify().headers["x-model-version"]


@pytest.fixture
def operator(running: Running, cluster: ServeApi, tmp_path: Path) -> Operator:
    """Operates the shared service, which has the variants blue, in one process, and green besides its own."""
    operator = Operator(running, cluster, tmp_path)
    operator.config["applications"] += [
        variant(name, tiny_as(name, tmp_path), one_process=name == "blue") for name in ("blue", "green")
    ]
    operator.deploy()
    return operator


def check_labels(outcomes: list[Outcome]) -> None:
    """Check that each response has the labels of the version in its header."""
    for outcome in outcomes:
        assert outcome.label is not None
        assert outcome.label.partition(" by ")[2] == ("" if outcome.version == TINY_VERSION else outcome.version), (
            outcome
        )


def test_variants_and_weights_change_without_a_failed_request(operator: Operator) -> None:
    """Traffic moves main -> both -> green -> blue, then blue changes its weights; labels match the version."""
    load = ConstantLoad(f"{operator.api}/v1/classify", make_photo(), RATE)
    with load.running():
        operator.change("classify", "Ingress", traffic={"blue": 50, "green": 50})
        wait_for(lambda: {operator.version() for _ in range(10)} == {"blue", "green"})

        assert operator.classify(**{"X-Model": "green"}).headers["x-model-version"] == "green"
        assert operator.scores("blue") == pytest.approx(operator.scores("green"), abs=1e-3)  # biases are rounded
        missing = operator.classify(**{"X-Model": "gren"})
        assert (missing.status_code, missing.json()["code"]) == (404, "unknown_model")
        first = {client: operator.classify(**{"X-Sticky": client}).json()["model"]["version"] for client in "abcdefgh"}
        again = {client: operator.classify(**{"X-Sticky": client}).json()["model"]["version"] for client in "abcdefgh"}
        assert first == again
        assert set(first.values()) == {"blue", "green"}

        for name in ("green", "blue"):
            operator.change("classify", "Ingress", traffic={"blue": 0, "green": 0} | {name: 1}, shadow="green")
            wait_for(lambda name=name: operator.version() == name)
        wait_for(lambda: operator.status()["traffic"]["shadow"]["compared"] > 3)

        operator.change("classify", "Ingress", traffic={"gren": 1}, shadow=None)
        wait_for(lambda: "gren" in (operator.status()["traffic"]["waiting_for"] or ""))
        assert operator.version() == "blue"
        operator.change("classify", "Ingress", traffic={"blue": 1})

        operator.change("blue", "Classifier", weights=tiny_as("teal", operator.folder))
        wait_for(lambda: operator.version() == "teal")
        operator.change("blue", "Classifier", weights=tiny_as("cyan", operator.folder) | {"sha256": "0" * 64})
        wait_for(lambda: operator.status()["variants"]["blue"]["refused"])
        status = operator.status()["variants"]["blue"]
        assert "sha256" in status["refused"]
        assert status["model"]["version"] == operator.version() == "teal"
        operator.change("blue", "Classifier", weights=None)
        wait_for(lambda: operator.version() == "blue")
    assert [dataclasses.asdict(outcome) for outcome in load.failed()] == []
    check_labels(load.outcomes)
    assert set(load.versions()) == {TINY_VERSION, "blue", "green", "teal"}
    assert len(load.outcomes) > RATE * 5
