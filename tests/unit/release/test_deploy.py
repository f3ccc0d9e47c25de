"""The deploy command against a fake Ray: what it rejects, applies, rolls back and prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.release import rollout
from serve_app.release.deploy import default_api_url, roll_out_or_back
from serve_app.release.rollout import DeployError, RefusedError, ServeApi, previous_config
from serve_app.release.serve_config import Config, ConfigError, check, read
from tests.support.configs import changed, in_one_process, state_of, tuned, write
from tests.support.paths import ROOT


class FakeRay:
    """Ray's REST API: stores a config and answers with the state that ``becomes`` makes of it.

    Attributes:
        puts: The configs of all PUT requests.
        headers: The headers of all requests.
    """

    def __init__(self, running: Config | None, becomes: Callable[[Config, float], dict[str, Any]] = state_of) -> None:
        self._state = state_of(running) if running else {"applications": {}}
        self._becomes, self._deployed_s = becomes, 1.0
        self.puts: list[Config] = []
        self.headers: list[httpx2.Headers] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.headers.append(request.headers)
        if request.method == "PUT":
            self._deployed_s += 1
            self.puts.append(json.loads(request.content))
            self._state = self._becomes(self.puts[-1], self._deployed_s)
        return httpx2.Response(200, json=self._state)

    def client(self, token: str | None = None) -> ServeApi:
        return ServeApi("http://ray", token, httpx2.MockTransport(self))


class FakeApi:
    """A deployed API whose smoke tests end as listed: None passes, a string is the reason of the failure."""

    def __init__(self, *outcomes: str | None) -> None:
        self._outcomes = list(outcomes)

    def check_reachable(self) -> None:
        pass

    def smoke_test(self, _state: Any, _config: Config) -> None:
        if reason := self._outcomes.pop(0):
            raise DeployError(reason)


@pytest.fixture(autouse=True)
def _poll_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "POLL_S", 0.01)


def deploy(ray: FakeRay, config: Config, api: FakeApi, timeout_s: float = 0.1) -> None:
    client = ray.client()
    roll_out_or_back(client, config, client.state(), api, timeout_s)  # type: ignore[arg-type] # has the methods in use


def batch_of_4(config: Config) -> Config:
    return changed(config, "Classifier", user_config={"max_batch_size": 4})


def saved_config(message: str) -> Path:
    """The file with the previous config that an error message names."""
    (path,) = [Path(word.rstrip(",")) for word in message.split() if "previous-" in word]
    return path


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
        (
            "Ingress",
            {"user_config": {"door": {}}},
            r"classify\.Ingress\.user_config: `door` was renamed to `admission`",
        ),
        ("Classifier", {"name": "Clasifier"}, r"classify\.Clasifier: no such deployment; .* has Ingress, Prep"),
        ("Ingress", {"num_replicas": -1}, r"num_replicas"),
    ],
)
def test_a_wrong_config_is_rejected_in_one_line(config: Config, stage: str, values: Config, sentence: str) -> None:
    """The message names the place and the key or value."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        check(changed(config, stage, **values))
    assert "\n" not in str(caught.value)


def test_one_process_has_one_deployment_for_all_stages(config: Config) -> None:
    """Entries of other stages would set something that does not exist; the Ingress has the Classifier's settings."""
    one = in_one_process(config)
    one["applications"][0]["deployments"] += [{"name": "Preprocessor"}]
    with pytest.raises(ConfigError, match=r"Preprocessor: no such deployment; .* has Ingress, Teacher"):
        check(one)
    one["applications"][0]["deployments"].pop()
    check(one)
    with pytest.raises(ConfigError, match=r"Ingress\.user_config: classifier\.max_batch_size: .*\(got 0\)"):
        check(tuned(one, "Ingress", classifier={"max_batch_size": 0}))


def test_settings_of_another_process_are_rejected(config: Config) -> None:
    """The Ingress has no Classifier; the weights that it names would never be loaded."""
    with pytest.raises(ConfigError, match=r"classify\.Ingress\.user_config\.classifier: needs args\.one_process"):
        check(tuned(config, "Ingress", classifier={"weights": "demo"}))
    blue_green = tuned(read(ROOT / "configs" / "blue-green.yaml"), "Ingress", classifier={"weights": "demo"})
    with pytest.raises(ConfigError, match=r"Ingress\.user_config\.classifier: needs args\.one_process"):
        check(blue_green)


def test_unusable_arguments_exit_with_2_and_change_nothing(tmp_path: Path) -> None:
    """A missing config, a missing image, an empty token file and an unreachable dashboard get one line each."""
    local = str(ROOT / "configs" / "local.yaml")
    (tmp_path / "token").write_text("\n")
    for arguments, sentence in (
        ([str(tmp_path / "none.yaml")], "none.yaml cannot be read as a Serve config"),
        ([local, "--image", str(tmp_path / "none.jpg")], "none.jpg cannot be read (No such file or directory)"),
        ([local, "--token-file", str(tmp_path / "token")], "token holds no token"),
        ([local, "--address", "http://127.0.0.1:9"], "no Ray dashboard answers at http://127.0.0.1:9"),
    ):
        result = CliRunner().invoke(app, ["deploy", *arguments])
        assert result.exit_code == 2
        assert sentence in result.stderr
        assert result.stderr.endswith("nothing was changed\n")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("keys", "settings", "sentence"),
    [
        ({"hashes": {"alice": "0" * 64}}, {}, "required a key until now"),
        ({"file": "/run/keys"}, {"keys": {"burst": 5}}, "required a key until now"),
        ({}, {}, "reachable on 0.0.0.0"),
    ],
)
def test_a_file_without_keys_is_refused_before_anything_changes(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: Config, settings: Config, sentence: str
) -> None:
    """While keys are in force, and where others reach the API; `open: true` says that it is meant so."""
    ray = FakeRay(tuned(config, "Ingress", keys=keys))
    ray._state["http_options"] = {"host": "127.0.0.1" if keys else "0.0.0.0"}
    monkeypatch.setattr("serve_app.release.deploy.ServeApi", lambda _address, token: ray.client(token))
    monkeypatch.setattr("serve_app.release.deploy.refuse_worse", lambda *_: [])
    for is_open, code in ((False, 2), (True, 0)):
        file = write(tuned(config, "Ingress", **settings, **({"open": True} if is_open else {})), tmp_path)
        result = CliRunner().invoke(app, ["deploy", str(file), "--dry-run", "--api", "http://127.0.0.1:9"])
        assert result.exit_code == code, result.output
        assert (sentence in result.stderr) != is_open
    assert ray.puts == []


def test_the_token_is_sent_and_never_shown(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Ray's token travels in the Authorization header and appears in no message."""
    ray = FakeRay(config)
    ray.client("s3cret").state()
    assert ray.headers[0]["authorization"] == "Bearer s3cret"
    refusing = ServeApi("http://ray", "s3cret", httpx2.MockTransport(lambda _request: httpx2.Response(401)))
    with pytest.raises(RefusedError, match="--token-file") as caught:
        refusing.state()
    assert "s3cret" not in str(caught.value) + "".join(capsys.readouterr())


def test_a_good_config_is_applied_once(config: Config) -> None:
    ray, new = FakeRay(config), batch_of_4(config)
    deploy(ray, new, FakeApi(None))
    assert ray.puts == [new]


def fail_batch_of_4(config: Config, deployed_s: float) -> dict[str, Any]:
    """A Ray on which a maximum batch size of 4 fails."""
    state = state_of(config, deployed_s)
    if "'max_batch_size': 4" in str(config):
        app = state["applications"]["classify"]
        app["status"] = "DEPLOY_FAILED"
        app["deployments"]["Classifier"] |= {"status": "DEPLOY_FAILED", "message": "RuntimeError: boom"}
    return state


@pytest.mark.parametrize("cause", ["failed", "late", "smoke test"])
def test_a_failed_rollout_restores_the_previous_config(config: Config, cause: str) -> None:
    """The previous config returns whether Ray gives up, time runs out or the smoke test fails."""

    def late(config: Config, deployed_s: float) -> dict[str, Any]:
        return state_of(config, deployed_s, "DEPLOYING" if "'max_batch_size': 4" in str(config) else "RUNNING")

    ray = FakeRay(config, {"failed": fail_batch_of_4, "late": late, "smoke test": state_of}[cause])
    api = FakeApi("scores are not finite", None) if cause == "smoke test" else FakeApi(None)
    reason = {"failed": "boom", "late": "not live within 0 s: classify is DEPLOYING", "smoke test": "not finite"}[cause]
    with pytest.raises(DeployError, match=rf"{reason}.*; the previous config is live$"):
        deploy(ray, batch_of_4(config), api)
    assert ray.puts[1] == previous_config(state_of(config))


def test_a_failed_rollback_leaves_a_file(config: Config) -> None:
    """The message names a file with the previous config that only its owner can read."""
    ray = FakeRay(config)
    message = r"no answer; the previous config, in (\S+), is not live either: none"
    with pytest.raises(DeployError, match=message) as caught:
        deploy(ray, batch_of_4(config), FakeApi("no answer", "none either"))
    path = saved_config(str(caught.value))
    assert yaml.safe_load(path.read_text()) == previous_config(state_of(config))
    assert path.stat().st_mode & 0o077 == 0
    path.unlink()


def test_a_failed_first_deployment_is_removed(config: Config) -> None:
    """Without a previous config the rollback deploys an empty list of applications."""
    ray = FakeRay(None, fail_batch_of_4)
    with pytest.raises(DeployError, match="boom; nothing runs"):
        deploy(ray, batch_of_4(config), FakeApi(None))
    assert ray.puts[1] == {"applications": []}


def test_ctrl_c_leaves_the_new_config_and_a_file(config: Config) -> None:
    """Ray continues with the new config; the message names a file with the previous config."""

    class InterruptedApi(FakeApi):
        def smoke_test(self, _state: Any, _config: Config) -> None:
            raise KeyboardInterrupt

    ray = FakeRay(config)
    with pytest.raises(DeployError, match=r"^interrupted: Ray continues with the new config; to roll back,") as caught:
        deploy(ray, batch_of_4(config), InterruptedApi())
    assert len(ray.puts) == 1
    path = saved_config(str(caught.value))
    assert yaml.safe_load(path.read_text()) == previous_config(state_of(config))
    path.unlink()


def test_the_default_api_url_has_the_dashboards_host(config: Config) -> None:
    """Serve's port comes from the running Serve, else from the config."""
    assert default_api_url("http://127.0.0.1:8265", state_of(config), config) == "http://127.0.0.1:8000"
    state = state_of(config) | {"http_options": {"port": 8123}}
    assert default_api_url("https://head:8265", state, config) == "http://head:8123"
