"""The deploy command without a cluster: what it refuses, waits for, tests, takes back and says."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from serve_app.release import deploy as command
from serve_app.release import rollout
from serve_app.release.rollout import Cluster, DeployError, RefusedError, failure, previous_config, still_missing
from serve_app.release.serve_config import Config, ConfigError, check
from tests.support.configs import changed, state_of
from tests.support.paths import ROOT


class FakeRay:
    """Ray's REST API: takes a config and is at once what ``becomes`` makes of it.

    Attributes:
        puts: The configs that were put.
    """

    def __init__(self, running: Config | None, becomes: Callable[[Config, float], dict[str, Any]] = state_of) -> None:
        self._state = state_of(running) if running else {"applications": {}}
        self._becomes, self._at = becomes, 1.0
        self.puts: list[Config] = []
        self.headers: list[httpx2.Headers] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.headers.append(request.headers)
        if request.method == "PUT":
            self._at += 1
            self.puts.append(json.loads(request.content))
            self._state = self._becomes(self.puts[-1], self._at)
        return httpx2.Response(200, json=self._state)

    def cluster(self, token: str | None = None) -> Cluster:
        return Cluster("http://ray", token, httpx2.MockTransport(self))


class FakeService:
    """An API that classifies, or not, as long as a config is live."""

    def __init__(self, *outcomes: str | None) -> None:
        self._outcomes = list(outcomes)

    def check_there(self) -> None:
        pass

    def test(self, _state: Any, _config: Config) -> None:
        if why := self._outcomes.pop(0):
            raise DeployError(why)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "POLL_S", 0.01)


def deploy(ray: FakeRay, config: Config, service: FakeService, timeout_s: float = 0.1) -> None:
    cluster = ray.cluster()
    command.deploy(cluster, config, cluster.state(), service, timeout_s)  # type: ignore[arg-type] # as much of it as is used


# What is refused before anything is touched.


@pytest.mark.parametrize(
    ("stage", "values", "sentence"),
    [
        (
            "Classifier",
            {"autoscaling_config": {"max_replica": 3}},
            r"classify\.Classifier\.autoscaling_config: .*max_replica",
        ),
        ("Classifier", {"ray_actor_options": {"num_gpu": 1}}, r"classify\.Classifier\.ray_actor_options: .*num_gpu"),
        (
            "Classifier",
            {"user_config": {"max_batch_size": 0}},
            r"classify\.Classifier\.user_config: max_batch_size: .*\(got 0\)",
        ),
        (
            "Preprocessor",
            {"user_config": {"threads": 2}},
            r"classify\.Preprocessor\.user_config: threads: unknown name",
        ),
        ("Classifier", {"name": "Clasifier"}, r"classify\.Clasifier: no such deployment; there are Ingress"),
        ("Ingress", {"num_replicas": -1}, r"num_replicas"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(config: Config, stage: str, values: Config, sentence: str) -> None:
    """Where, what, in one line."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        check(changed(config, stage, **values))
    assert "\n" not in str(caught.value)


def test_bad_usage_exits_with_2_and_says_that_nothing_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A missing file, an empty token file, and nobody at the address."""
    local = str(ROOT / "configs" / "local.yaml")
    (tmp_path / "token").write_text("\n")
    for arguments, sentence in (
        ([str(tmp_path / "none.yaml")], "none.yaml cannot be read as a Serve config"),
        ([local, "--token-file", str(tmp_path / "token")], "token holds no token"),
        ([local, "--address", "http://127.0.0.1:9"], "no Ray dashboard answers at http://127.0.0.1:9"),
    ):
        monkeypatch.setattr(sys, "argv", ["deploy", *arguments])
        with pytest.raises(SystemExit) as caught:
            command.main()
        said = capsys.readouterr().err
        assert caught.value.code == 2
        assert sentence in said
        assert said.endswith("nothing was changed\n")
        assert len(said.splitlines()) == 1


def test_the_token_is_sent_and_never_shown(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    ray = FakeRay(config)
    ray.cluster("s3cret").state()
    assert ray.headers[0]["authorization"] == "Bearer s3cret"
    refusing = Cluster("http://ray", "s3cret", httpx2.MockTransport(lambda _request: httpx2.Response(401)))
    with pytest.raises(RefusedError, match="--token-file") as caught:
        refusing.state()
    assert "s3cret" not in str(caught.value) + "".join(capsys.readouterr())


# When it is live.


def test_running_from_before_is_not_live(config: Config) -> None:
    """A RUNNING that was read just after the PUT, but is the old config's, does not count."""
    before = state_of(config, at=1)
    assert still_missing(before, config, before) == ["classify has not been taken up yet"]
    assert still_missing(state_of(config, at=2), config, before) == []


def test_an_old_replica_that_still_stops_is_not_live(config: Config) -> None:
    before, after = state_of(config, at=1), state_of(config, at=2)
    after["applications"]["classify"]["deployments"]["Ingress"]["replicas"].append({"state": "STOPPING"})
    (missing,) = still_missing(after, config, before)
    assert "classify.Ingress is HEALTHY (1 of 1 replicas run, 1 start or stop)" in missing


def test_an_application_that_has_to_go_is_waited_for(config: Config) -> None:
    both = copy.deepcopy(config)
    both["applications"].append({**copy.deepcopy(config["applications"][0]), "name": "old", "route_prefix": "/old"})
    before = state_of(both)
    after = state_of(config, at=2)
    after["applications"]["old"] = before["applications"]["old"]
    assert still_missing(after, config, before) == ["old is not gone yet"]


def test_a_failed_deployment_is_one_sentence() -> None:
    """Ray's traceback is long; what was wrong stands at its end."""
    trace = (
        "Failed to update\nRayTaskError\n  File x\nserve_app.errors.WeightsError: weights x: sha256 is 1, expected 2\n"
    )
    app: dict[str, Any] = {
        "status": "DEPLOYING",
        "message": "",
        "deployments": {"Classifier": {"status": "UPDATING", "message": trace}},
    }
    assert failure(app) == "weights x: sha256 is 1, expected 2"
    assert failure({"status": "DEPLOYING", "message": "", "deployments": {}}) is None
    assert failure({"status": "DEPLOY_FAILED", "message": "why", "deployments": {}}) == "why"
    code = "Retrying. Error:\nray::Replica()\n  File x\nRuntimeError: boom\n"
    app["deployments"]["Classifier"] = {"status": "DEPLOY_FAILED", "message": code}
    assert failure(app | {"status": "DEPLOY_FAILED"}) == "RuntimeError: boom"


def test_a_failure_left_from_before_does_not_count() -> None:
    """Until Ray takes a config up, its deployments still show the message of the one before."""
    trace = "serve_app.errors.WeightsError: weights x: sha256 is 1, expected 2"
    stale = {"Classifier": {"status": "HEALTHY", "message": trace}}
    assert failure({"status": "DEPLOYING", "message": "", "deployments": stale}) is None


# The way there, and the way back.


def test_a_config_goes_live(config: Config) -> None:
    ray, new = FakeRay(config), changed(config, "Classifier", user_config={"max_batch_size": 4})
    deploy(ray, new, FakeService(None))
    assert ray.puts == [new]


def failing(config: Config, at: float) -> dict[str, Any]:
    """Fails whatever wants a batch of 4."""
    state = state_of(config, at)
    if "'max_batch_size': 4" in str(config):
        app = state["applications"]["classify"]
        app["status"] = "DEPLOY_FAILED"
        app["deployments"]["Classifier"] |= {"status": "DEPLOY_FAILED", "message": "RuntimeError: boom"}
    return state


@pytest.mark.parametrize("cause", ["failed", "late", "smoke test"])
def test_the_previous_config_comes_back(config: Config, cause: str) -> None:
    """Whether Ray gives up, time runs out or the service does not classify: the old config is put back."""

    def late(config: Config, at: float) -> dict[str, Any]:
        return state_of(config, at, "DEPLOYING" if "'max_batch_size': 4" in str(config) else "RUNNING")

    ray = FakeRay(config, {"failed": failing, "late": late, "smoke test": state_of}[cause])
    service = FakeService("scores are not finite", None) if cause == "smoke test" else FakeService(None)
    reason = {"failed": "boom", "late": "not live within 0 s: classify is DEPLOYING", "smoke test": "not finite"}[cause]
    with pytest.raises(DeployError, match=rf"{reason}.*; the previous config is live$"):
        deploy(ray, changed(config, "Classifier", user_config={"max_batch_size": 4}), service)
    assert ray.puts[1] == previous_config(state_of(config))


def test_a_way_back_that_fails_too_is_said(config: Config) -> None:
    """With the file that holds the previous config, readable by its owner alone."""
    ray = FakeRay(config)
    with pytest.raises(
        DeployError, match=r"no answer; and the previous config, in (\S+), is not live either: none"
    ) as e:
        deploy(
            ray,
            changed(config, "Classifier", user_config={"max_batch_size": 4}),
            FakeService("no answer", "none either"),
        )
    (path,) = [Path(word.rstrip(",")) for word in str(e.value).split() if "previous-" in word]
    assert yaml.safe_load(path.read_text()) == previous_config(state_of(config))
    assert path.stat().st_mode & 0o077 == 0
    path.unlink()


def test_a_first_deployment_that_fails_leaves_nothing(config: Config) -> None:
    ray = FakeRay(None, failing)
    with pytest.raises(DeployError, match="boom; nothing runs"):
        deploy(ray, changed(config, "Classifier", user_config={"max_batch_size": 4}), FakeService(None))
    assert ray.puts[1] == {"applications": []}


def test_ctrl_c_says_what_it_leaves(config: Config) -> None:
    """Ray goes on with what it has been given; the way back is a file."""

    class Interrupted(FakeService):
        def test(self, _state: Any, _config: Config) -> None:
            raise KeyboardInterrupt

    ray = FakeRay(config)
    with pytest.raises(
        DeployError, match=r"^interrupted: Ray goes on with the new config; the previous one is in "
    ) as e:
        deploy(ray, changed(config, "Classifier", user_config={"max_batch_size": 4}), Interrupted())
    assert len(ray.puts) == 1
    (path,) = [Path(word.rstrip(",")) for word in str(e.value).split() if "previous-" in word]
    assert yaml.safe_load(path.read_text()) == previous_config(state_of(config))
    path.unlink()


def test_the_service_is_looked_for_next_to_the_dashboard(config: Config) -> None:
    assert command.api_address("http://127.0.0.1:8265", state_of(config), config) == "http://127.0.0.1:8000"
    state = state_of(config) | {"http_options": {"port": 8123}}
    assert command.api_address("https://head:8265", state, config) == "http://head:8123"
