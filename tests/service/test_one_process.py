"""All stages in the Ingress's process: answers, live weights and a rolling update under load."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from serve_app.release.rollout import ServeApi, previous_config
from tests.support.configs import in_one_process, local, tuned
from tests.support.constant_load import ConstantLoad
from tests.support.photos import make_photo
from tests.support.polling import wait_for
from tests.support.running import Running, start
from tests.support.services import APPLY_TIMEOUT_S
from tests.support.weights import TINY_VERSION, publish_copy, tiny


@pytest.fixture(scope="module")
def one() -> Iterator[Running]:
    """A service in one process, without the page."""
    with start(in_one_process(local()), page=False) as running:
        yield running


def classify(running: Running, path: str = "/v1/classify") -> httpx2.Response:
    return httpx2.post(f"{running.api}{path}", content=make_photo(), timeout=60)


def test_it_answers_as_three_processes_do(one: Running, running: Running) -> None:
    """Classes, embeddings, errors and the status are those of three stages; two deployments are left."""
    (here,), (there,) = (classify(each).json()["results"] for each in (one, running))
    assert [each["label"] for each in here["predictions"]] == [each["label"] for each in there["predictions"]]
    (here,), (there,) = (classify(each, "/v1/embed").json()["results"] for each in (one, running))
    assert here["embedding"] == pytest.approx(there["embedding"], abs=1e-3)
    refused = httpx2.post(f"{one.api}/v1/classify", content=b"no image")
    assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_image")
    status = httpx2.get(f"{one.api}/v1/status").json()
    assert set(status["deployments"]) == {"Ingress", "Teacher"}
    assert status["variants"]["main"]["model"]["version"] == TINY_VERSION
    (version,) = httpx2.get(f"{one.api}/models/resnet18").json()
    assert len(version["workers"]) == 1


def test_weights_and_replicas_change_without_a_failed_request(one: Running, tmp_path: Path) -> None:
    """Weights are replaced live; broken ones are refused; new `args` start a replica before the old one stops."""
    cluster = ServeApi(one.dashboard)
    teal = publish_copy(tiny(), tmp_path / "teal", "teal").model_dump()
    blue = publish_copy(tiny(), tmp_path / "blue", "blue").model_dump()
    config = previous_config(cluster.state())
    load = ConstantLoad(f"{one.api}/v1/classify", make_photo(), rate=15)

    def version() -> str:
        return classify(one).headers["x-model-version"]

    with load.running():
        cluster.apply(tuned(config, "Ingress", classifier={"weights": teal}), APPLY_TIMEOUT_S)
        wait_for(lambda: version() == "teal")
        broken = tuned(config, "Ingress", classifier={"weights": blue | {"sha256": "0" * 64}})
        cluster.apply(broken, APPLY_TIMEOUT_S)
        wait_for(lambda: httpx2.get(f"{one.api}/v1/status").json()["variants"]["main"]["refused"])
        assert version() == "teal"
        config["applications"][0]["args"]["weights"] = blue
        cluster.apply(config, APPLY_TIMEOUT_S)
        wait_for(lambda: {version() for _ in range(5)} == {"blue"})
    assert [dataclasses.asdict(outcome) for outcome in load.failed()] == []
    assert set(load.versions()) == {TINY_VERSION, "teal", "blue"}


def test_an_ingress_without_a_model_refuses_its_settings(running: Running, cluster: ServeApi) -> None:
    """A raw `serve deploy` reaches the replica without our check; it keeps its settings and says why."""
    config = tuned(previous_config(cluster.state()), "Ingress", classifier={"max_batch_size": 4})
    cluster.apply(config, APPLY_TIMEOUT_S)
    refused = wait_for(lambda: httpx2.get(f"{running.api}/v1/status").json()["refused"])
    assert "classifier: needs `one_process: true`" in refused
    assert classify(running).status_code == 200
