"""When a rollout is complete, and why it failed, from the state that Ray's REST API returns."""

from __future__ import annotations

import copy
from typing import Any

from serve_app.release.rollout import failure_reason, find_pending
from serve_app.release.serve_config import Config
from tests.support.configs import state_of

WEIGHTS_ERROR = "serve_app.errors.WeightsError: weights x: sha256 is 1, expected 2"


def app_state(status: str, deployment_status: str = "", message: str = "") -> dict[str, Any]:
    deployments = {"Classifier": {"status": deployment_status, "message": message}} if deployment_status else {}
    return {"status": status, "message": "", "deployments": deployments}


def test_the_old_deployment_is_not_live(config: Config) -> None:
    """A state that Ray returns before it starts to deploy still describes the old config."""
    before = state_of(config, at=1)
    assert find_pending(before, config, before) == ["Ray has not started to deploy classify"]
    assert find_pending(state_of(config, at=2), config, before) == []


def test_an_old_replica_that_is_stopping_is_pending(config: Config) -> None:
    """A rollout ends when no replica is starting or stopping."""
    before, after = state_of(config, at=1), state_of(config, at=2)
    after["applications"]["classify"]["deployments"]["Ingress"]["replicas"].append({"state": "STOPPING"})
    (pending,) = find_pending(after, config, before)
    assert "classify.Ingress is HEALTHY (1 of 1 replicas run, 1 are starting or stopping)" in pending


def test_an_application_that_is_being_removed_is_pending(config: Config) -> None:
    """A rollout ends when applications that the config omits are gone."""
    both = copy.deepcopy(config)
    both["applications"].append({**copy.deepcopy(config["applications"][0]), "name": "old", "route_prefix": "/old"})
    before = state_of(both)
    after = state_of(config, at=2)
    after["applications"]["old"] = before["applications"]["old"]
    assert find_pending(after, config, before) == ["old is not removed yet"]


def test_a_failure_is_one_line_without_the_traceback() -> None:
    """The reason is the service's own error, else the last exception, else Ray's message."""
    traceback = f"Failed to update\nRayTaskError\n  File x\n{WEIGHTS_ERROR}\n"
    assert failure_reason(app_state("DEPLOYING", "UPDATING", traceback)) == "weights x: sha256 is 1, expected 2"
    assert failure_reason(app_state("DEPLOYING")) is None
    assert failure_reason(app_state("DEPLOY_FAILED") | {"message": "why"}) == "why"
    traceback = "Retrying. Error:\nray::Replica()\n  File x\nRuntimeError: boom\n"
    assert failure_reason(app_state("DEPLOY_FAILED", "DEPLOY_FAILED", traceback)) == "RuntimeError: boom"


def test_the_message_of_an_earlier_failure_does_not_count() -> None:
    """A HEALTHY deployment may still show the error of the config before."""
    assert failure_reason(app_state("DEPLOYING", "HEALTHY", WEIGHTS_ERROR)) is None
