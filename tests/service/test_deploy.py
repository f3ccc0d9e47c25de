"""Configs that Ray applies to a running service: live changes, and weights that fail to load."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve_app.release.rollout import failure_reason
from serve_app.release.serve_config import Config
from tests.conftest import make_photo, publish_random
from tests.support.configs import tuned
from tests.support.running import Running


@pytest.fixture
def applications(running: Running) -> Iterator[Callable[[], dict[str, Any]]]:
    """A function that reads the state of all applications; the config of before returns after the test."""
    url = f"{running.dashboard}/api/serve/applications/"

    def read() -> dict[str, Any]:
        state: dict[str, Any] = httpx2.get(url, timeout=30).json()["applications"]
        return state

    before = deployed(running)
    yield read
    deploy(running, before)
    wait_for(lambda: {name: app["status"] for name, app in read().items()} == {"classify": "RUNNING"})


def deployed(running: Running) -> Config:
    """The running config, as `serve config` prints it."""
    apps = httpx2.get(f"{running.dashboard}/api/serve/applications/", timeout=30).json()["applications"]
    return {"applications": [app["deployed_app_config"] for app in apps.values()]}


def deploy(running: Running, config: Config) -> None:
    response = httpx2.put(f"{running.dashboard}/api/serve/applications/", json=config, timeout=60)
    assert response.status_code == 200, response.text


def wait_for(condition: Callable[[], Any], timeout_s: float = 240) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    raise TimeoutError


def test_a_user_config_change_is_live(running: Running, applications: Callable[[], dict[str, Any]]) -> None:
    """top_k changes without a restart and without a failed request."""
    up_before = httpx2.get(f"{running.api}/v1/status").json()["up_s"]
    deploy(running, tuned(deployed(running), "Ingress", top_k=3, abstain_below=1.0))

    def changed() -> bool:
        response = httpx2.post(f"{running.api}/v1/classify", content=make_photo(), timeout=30)
        assert response.status_code == 200, response.text
        return len(response.json()["results"][0]["predictions"]) == 3

    wait_for(changed, 30)
    assert httpx2.get(f"{running.api}/v1/status").json()["up_s"] > up_before


def spoil(folder: Path) -> dict[str, dict[str, str | None]]:
    """Words of the error message -> weights config that fails with it."""
    spec = publish_random(folder)
    Path(spec.source).write_bytes(Path(spec.source).read_bytes()[:-1] + b"\x01")
    return {
        "sha256 is": {"source": spec.source, "sha256": spec.sha256},
        "cannot read the card": {"source": str(folder / "none.safetensors"), "sha256": "0" * 64},
        "unknown name": {"source": "resnet51"},
    }


def test_unusable_weights_fail_their_deployment(
    running: Running, applications: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    """A wrong hash, a missing file and an unknown name fail with one line; no other weights are served instead."""
    config = deployed(running)
    cases = {sentence: (f"bad{i}", weights) for i, (sentence, weights) in enumerate(spoil(tmp_path).items())}
    for name, weights in cases.values():
        app = copy.deepcopy(config["applications"][0])
        app |= {"name": name, "route_prefix": f"/{name}", "args": {"weights": weights}}
        for settings in app["deployments"]:
            settings["ray_actor_options"] = {"num_cpus": 0}
        config["applications"].append(app)
    deploy(running, config)
    for sentence, (name, weights) in cases.items():
        app = wait_for(lambda name=name: (a := applications().get(name)) and a["status"] == "DEPLOY_FAILED" and a)
        reason = failure_reason(app)
        assert reason is not None
        assert "\n" not in reason
        assert reason.startswith(f"weights {weights['source']}: ")
        assert sentence in reason
        response = httpx2.post(f"{running.api}/{name}/v1/classify", content=make_photo(), timeout=60)
        assert response.status_code in (404, 503), response.text
    assert httpx2.post(f"{running.api}/v1/classify", content=make_photo(), timeout=60).status_code == 200
