"""Configs that Ray applies to a running service: live changes, and weights that fail to load."""

from __future__ import annotations

import copy
from pathlib import Path

import httpx2

from serve_app.release.rollout import ServeApi, failure_reason, previous_config
from serve_app.release.serve_config import Config
from tests.support.configs import tuned
from tests.support.photos import make_photo
from tests.support.polling import wait_for
from tests.support.running import Running
from tests.support.services import APPLY_TIMEOUT_S
from tests.support.weights import publish_random


def put(running: Running, config: Config) -> None:
    """Hand a config to Ray without waiting for its effect."""
    httpx2.put(f"{running.dashboard}/api/serve/applications/", json=config, timeout=60).raise_for_status()


def test_user_config_is_live(running: Running, cluster: ServeApi) -> None:
    """A new top_k takes effect without a restart and without a failed request."""
    up_before = httpx2.get(f"{running.api}/v1/status").json()["up_s"]
    put(running, tuned(previous_config(cluster.state()), "Ingress", top_k=3, abstain_below=1.0))

    def changed() -> bool:
        response = httpx2.post(f"{running.api}/v1/classify", content=make_photo(), timeout=30)
        assert response.status_code == 200, response.text
        return len(response.json()["results"][0]["predictions"]) == 3

    wait_for(changed)
    assert httpx2.get(f"{running.api}/v1/status").json()["up_s"] > up_before


def spoil(folder: Path) -> dict[str, dict[str, str | None]]:
    """Return weights that cannot be served, by the words that the error message must contain."""
    spec = publish_random(folder)
    Path(spec.source).write_bytes(Path(spec.source).read_bytes()[:-1] + b"\x01")
    return {
        "sha256 is": {"source": spec.source, "sha256": spec.sha256},
        "cannot read the card": {"source": str(folder / "none.safetensors"), "sha256": "0" * 64},
        "unknown name": {"source": "resnet51"},
    }


def test_bad_weights_fail_their_deployment(running: Running, cluster: ServeApi, tmp_path: Path) -> None:
    """Wrong hash, missing file, unknown name: one sentence each, and nothing is served in their place."""
    config = previous_config(cluster.state())
    cases = {words: (f"bad{i}", weights) for i, (words, weights) in enumerate(spoil(tmp_path).items())}
    for name, weights in cases.values():
        app = copy.deepcopy(config["applications"][0])
        app |= {"name": name, "route_prefix": f"/{name}", "args": {"weights": weights}}
        for deployment in app["deployments"]:
            deployment["ray_actor_options"] = {"num_cpus": 0}
        config["applications"].append(app)
    put(running, config)
    for words, (name, weights) in cases.items():

        def failed(name: str = name) -> str | None:
            app = cluster.state()["applications"].get(name)
            return failure_reason(app) if app and app["status"] == "DEPLOY_FAILED" else None

        reason = wait_for(failed, APPLY_TIMEOUT_S, f"the failure of {name}")
        assert reason
        assert "\n" not in reason
        assert reason.startswith(f"weights {weights['source']}: ")
        assert words in reason
        response = httpx2.post(f"{running.api}/{name}/v1/classify", content=make_photo(), timeout=60)
        assert response.is_error, "another model answered in its place"
    assert httpx2.post(f"{running.api}/v1/classify", content=make_photo(), timeout=60).status_code == 200
