"""Predict the effect of a config on a running Serve: the dry run. Ray's own classes decide."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from serve_app.release.rollout import State
from serve_app.release.serve_config import BUILDERS, Config, app_name, built_deployments

FIXED_AT_START = ("proxy_location", "http_options", "grpc_options")


class Effect(Enum):
    """What happens to the replicas of a deployment, from the weakest effect to the strongest."""

    NOTHING = "nothing"
    SETTINGS = "new settings, replicas untouched"
    RECONFIGURE = "live: replicas are reconfigured where they run"
    RESTART = "restart"
    ADDED = "added"
    REMOVED = "removed"
    IGNORED = "ignored until Serve is shut down and started again"


RANK = list(Effect)


@dataclass(frozen=True)
class Change:
    """The effect on one deployment, application or top-level key; ``str`` describes it in one line."""

    where: str  # application.deployment, an application, or a key of the file
    effect: Effect  # the strongest effect of all changed keys
    keys: tuple[str, ...] = ()  # the keys whose values change
    replicas: tuple[int, int] | None = None  # number before and after; None if it stays
    surge: bool = False  # a restart starts new replicas before it stops old ones

    def __str__(self) -> str:
        text = self.effect.value
        if self.effect is Effect.RESTART:
            text += ", new replicas before old ones stop" if self.surge else ", OLD REPLICAS STOP BEFORE NEW ONES START"
        if self.replicas:
            text += "; {} -> {} replicas".format(*self.replicas)
        return f"{self.where}: {text}" + (f" ({', '.join(self.keys)})" if self.keys else "")


def plan(state: State, config: Config) -> list[Change]:
    """Compare a checked config with the state of Serve as its REST API returns it."""
    changes = [
        Change(key, Effect.IGNORED)
        for key in FIXED_AT_START
        if key in config and state.get(key) is not None and not _contains(state[key], config[key])
    ]
    new_apps = {app_name(app): app for app in config["applications"]}
    for name, app in new_apps.items():
        running = state["applications"].get(name)
        if running is None or not running.get("deployed_app_config"):
            changes.append(Change(name, Effect.ADDED))
        else:
            changes += _plan_application(name, running, app, config)
    changes += [Change(name, Effect.REMOVED) for name in state["applications"] if name not in new_apps]
    return changes


def _plan_application(name: str, running: State, app: Config, config: Config) -> list[Change]:
    old = running["deployed_app_config"]
    # Ray copies the file's logging_config into each application.
    new = {"logging_config": config["logging_config"], **app} if config.get("logging_config") else app
    restart_keys: list[str] = []
    if _code_version(old) != _code_version(new):
        restart_keys = [key for key in ("import_path", "runtime_env", "args") if old.get(key) != new.get(key)]
        restart_keys = restart_keys or ["autoscaling policy or request router"]
    app_keys = [key for key in ("logging_config",) if not _contains(old.get(key), new.get(key))]
    old_settings, new_settings = ({d["name"]: d for d in file.get("deployments", ())} for file in (old, new))
    built = built_deployments(app) if app["import_path"] in BUILDERS else tuple(running["deployments"])
    changes = [Change(f"{name}.{added}", Effect.ADDED) for added in built if added not in running["deployments"]]
    for deployment, live in running["deployments"].items():
        if deployment not in built:
            changes.append(Change(f"{name}.{deployment}", Effect.REMOVED))
            continue
        before, after = old_settings.get(deployment, {}), new_settings.get(deployment, {})
        keys = sorted(key for key in {*before, *after} if _differs(before, after, live["deployment_config"], key))
        effects = [Effect.RESTART] * bool(restart_keys) + [effect_of(key) for key in keys + app_keys]
        effect = max(effects, key=RANK.index, default=Effect.NOTHING)
        all_keys, replicas = (*restart_keys, *keys, *app_keys), _replicas(live["target_num_replicas"], after)
        surge = bool(after.get("max_surge_percent", 0))
        changes.append(Change(f"{name}.{deployment}", effect, all_keys, replicas, surge))
    return changes


def _code_version(app: Config) -> str:
    """Return Ray's hash of the keys whose change restarts an application.

    A private function of Ray 2.60.0; tests/service/test_deploy_command.py compares the plan with Ray's actions.
    """
    # Imported here: Ray reads its environment variables on import, see serve_config.check.
    from ray.serve._private.deploy_utils import get_app_code_version
    from ray.serve.schema import ServeApplicationSchema

    return get_app_code_version(ServeApplicationSchema.model_validate(app))


def effect_of(key: str) -> Effect:
    """Return the effect of changing one key of a deployment.

    Ray 2.60.0 stores this as ``update_type`` in the fields of a private class; tests/unit/release/test_plan.py
    checks one key of each type.
    """
    from ray.serve._private.config import DeploymentConfig

    field = DeploymentConfig.model_fields.get(key)
    if field is None or not isinstance(field.json_schema_extra, dict):
        return Effect.RESTART  # ray_actor_options and placement belong to the process
    update_type = getattr(field.json_schema_extra["update_type"], "name", None)
    if key == "autoscaling_config" or update_type in ("LightWeight", "NeedsReconfigure"):
        return Effect.SETTINGS
    return Effect.RECONFIGURE if update_type == "NeedsActorReconfigure" else Effect.RESTART


def _differs(before: Config, after: Config, current: Config, key: str) -> bool:
    if key in before and key in after:
        return bool(before[key] != after[key])
    if key in after:  # the code's default may already equal the new value
        return not _contains(current.get(key), after[key])
    return True  # back to the code's default, which the API does not return


def _replicas(now: int, after: Config) -> tuple[int, int] | None:
    """Return the number of replicas before and after; None if it stays or Ray chooses it."""
    if after.get("num_replicas") == "auto":
        return None
    if scaling := after.get("autoscaling_config"):
        target = min(max(now, scaling.get("min_replicas", 1)), scaling.get("max_replicas", now))
    else:
        target = after.get("num_replicas", 1)
    return None if target == now else (now, target)


def _contains(current: Any, value: Any) -> bool:
    """Return whether ``current`` equals ``value`` in every key that ``value`` has."""
    if isinstance(current, dict) and isinstance(value, dict):
        return all(key in current and _contains(current[key], inner) for key, inner in value.items())
    return bool(current == value)
