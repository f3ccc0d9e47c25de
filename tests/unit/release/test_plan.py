"""The effects that the dry run predicts. tests/service/test_deploy_command.py compares them with Ray's actions."""

from __future__ import annotations

import copy

import pytest
from ray.serve.schema import DeploymentSchema

from serve_app.release.plan import Effect, effect_of, plan
from serve_app.release.serve_config import Config
from tests.support.configs import changed, in_one_process, state_of

STAGES = ("Ingress", "Preprocessor", "Classifier", "Teacher")


@pytest.mark.parametrize(
    ("stage", "values", "effect"),
    [
        ("Classifier", {}, Effect.NOTHING),
        ("Classifier", {"max_ongoing_requests": 64}, Effect.NOTHING),  # equals the default in the code
        ("Classifier", {"max_ongoing_requests": 65}, Effect.RECONFIGURE),
        ("Classifier", {"user_config": {"max_batch_size": 4}}, Effect.RECONFIGURE),
        ("Classifier", {"max_queued_requests": 9}, Effect.SETTINGS),
        ("Classifier", {"health_check_period_s": 9}, Effect.SETTINGS),
        ("Classifier", {"ray_actor_options": {"num_cpus": 1}}, Effect.RESTART),
        ("Classifier", {"max_replicas_per_node": 1}, Effect.RESTART),
    ],
)
def test_a_changed_key_affects_its_deployment_only(config: Config, stage: str, values: Config, effect: Effect) -> None:
    """Each kind of key has the effect that Ray gives it."""
    changes = {each.where: each for each in plan(state_of(config), changed(config, stage, **values))}
    assert {where: each.effect for where, each in changes.items()} == {
        f"classify.{each}": effect if each == stage else Effect.NOTHING for each in STAGES
    }


def test_one_process_removes_the_other_stages(config: Config) -> None:
    """And the way back adds them."""
    new = in_one_process(config)
    for before, after, effect in ((config, new, Effect.REMOVED), (new, config, Effect.ADDED)):
        effects = {each.where: each.effect for each in plan(state_of(before), after)}
        assert {effects.pop(f"classify.{stage}") for stage in ("Preprocessor", "Classifier")} == {effect}
        assert set(effects.values()) == {Effect.RESTART}


def test_args_restart_every_deployment(config: Config) -> None:
    """Each line says whether old replicas serve until new ones are up."""
    new = copy.deepcopy(config)
    new["applications"][0]["args"] = {"weights": "imagenet"}
    for one in new["applications"][0]["deployments"]:
        one["max_surge_percent"] = 100 if one["name"] == "Classifier" else 0
    changes = plan(state_of(config), new)
    assert {each.effect for each in changes} == {Effect.RESTART}
    lines = {each.where: str(each) for each in changes}
    assert lines["classify.Classifier"].startswith(
        "classify.Classifier: restart, new replicas before old ones stop (args"
    )
    assert "OLD REPLICAS STOP BEFORE NEW ONES START" in lines["classify.Ingress"]


def test_the_plan_counts_replicas_and_applications(config: Config) -> None:
    """More replicas, a new application and a removed application have a line each."""
    more = changed(config, "Preprocessor", num_replicas=3)
    more["applications"].append({**copy.deepcopy(config["applications"][0]), "name": "new", "route_prefix": "/new"})
    lines = [str(each) for each in plan(state_of(config), more)]
    assert "classify.Preprocessor: new settings, replicas untouched; 1 -> 3 replicas (num_replicas)" in lines
    assert "new: added" in lines
    lines = [str(each) for each in plan(state_of(more), config)]
    assert "new: removed" in lines


def test_a_new_port_is_ignored_while_serve_runs(config: Config) -> None:
    """Ray reads http_options only when Serve starts."""
    new = {**config, "http_options": {"host": "127.0.0.1", "port": 9000}}
    assert str(plan(state_of(config), new)[0]) == "http_options: ignored until Serve is shut down and started again"


def test_ray_classifies_the_keys() -> None:
    """One key of each update type: fails first if a newer Ray renames its update types."""
    effects = {
        "num_replicas": Effect.SETTINGS,
        "autoscaling_config": Effect.SETTINGS,
        "graceful_shutdown_timeout_s": Effect.SETTINGS,
        "rolling_update_percentage": Effect.SETTINGS,
        "user_config": Effect.RECONFIGURE,
        "logging_config": Effect.RECONFIGURE,
        "ray_actor_options": Effect.RESTART,
        "placement_group_bundles": Effect.RESTART,
        "gang_scheduling_config": Effect.RESTART,
    }
    assert {key: effect_of(key) for key in effects} == effects
    assert set(effects) <= set(DeploymentSchema.model_fields)
