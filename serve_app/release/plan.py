"""What a config would change in a running Serve: the dry run. The rules are Ray's own, read from its classes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from serve_app.release.rollout import State
from serve_app.release.serve_config import Config

# Ray fixes these when Serve starts.
FIXED = ("proxy_location", "http_options", "grpc_options")


class Effect(Enum):
    """What happens to the replicas of a deployment."""

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
    """What would happen in one place, and why.

    Attributes:
        where: ``application.deployment``, or a key of the file.
        effect: The strongest of all that changes there.
        why: Keys whose values differ.
        replicas: How many there are and will be, where that changes.
        surge: Whether a restart starts new replicas before old ones stop.
    """

    where: str
    effect: Effect
    why: tuple[str, ...] = ()
    replicas: tuple[int, int] | None = None
    surge: bool = False

    def __str__(self) -> str:
        """One line."""
        text = self.effect.value
        if self.effect is Effect.RESTART:
            text += ", new replicas before old ones stop" if self.surge else ", OLD REPLICAS STOP BEFORE NEW ONES START"
        if self.replicas:
            text += "; {} -> {} replicas".format(*self.replicas)
        return f"{self.where}: {text}" + (f" ({', '.join(self.why)})" if self.why else "")


def plan(state: State, config: Config) -> list[Change]:
    """Compare a config with what runs.

    Args:
        state: Of Serve, as its REST API tells it.
        config: Checked.
    """
    changes = [
        Change(key, Effect.IGNORED)
        for key in FIXED
        if key in config and state.get(key) is not None and not _covers(state[key], config[key])
    ]
    wanted = {app.get("name", "default"): app for app in config["applications"]}
    for name, app in wanted.items():
        running = state["applications"].get(name)
        if running is None or not running.get("deployed_app_config"):
            changes.append(Change(name, Effect.ADDED))
        else:
            changes += _application(name, running, app, config)
    changes += [Change(name, Effect.REMOVED) for name in state["applications"] if name not in wanted]
    return changes


def _application(name: str, running: State, app: Config, config: Config) -> list[Change]:
    # Imported here, not above: see serve_config.check.
    from ray.serve._private.deploy_utils import get_app_code_version
    from ray.serve.schema import ServeApplicationSchema

    old = running["deployed_app_config"]
    new = {"logging_config": config["logging_config"], **app} if config.get("logging_config") else app
    versions = [get_app_code_version(ServeApplicationSchema.model_validate(each)) for each in (old, new)]
    everything: list[str] = []
    if versions[0] != versions[1]:
        everything = [key for key in ("import_path", "runtime_env", "args") if old.get(key) != new.get(key)]
        everything = everything or ["autoscaling policy or request router"]
    shared = [key for key in ("logging_config",) if not _covers(old.get(key), new.get(key))]
    explicit = [{one["name"]: one for one in each.get("deployments", ())} for each in (old, new)]
    changes = []
    for deployment, live in running["deployments"].items():
        before, after = (each.get(deployment, {}) for each in explicit)
        current = live["deployment_config"]
        keys = sorted(key for key in {*before, *after} if _differs(before, after, current, key))
        effects = [Effect.RESTART] * bool(everything) + [effect_of(key) for key in keys + shared]
        changes.append(
            Change(
                f"{name}.{deployment}",
                max(effects, key=RANK.index, default=Effect.NOTHING),
                (*everything, *keys, *shared),
                _replicas(live["target_num_replicas"], after),
                bool(after.get("max_surge_percent", 0)),
            )
        )
    return changes


def effect_of(key: str) -> Effect:
    """What a change of one key of a deployment does to its replicas, by Ray's own classification."""
    from ray.serve._private.config import DeploymentConfig

    field = DeploymentConfig.model_fields.get(key)
    if field is None or not isinstance(field.json_schema_extra, dict):
        return Effect.RESTART  # ray_actor_options, placement: they belong to the process
    kind = getattr(field.json_schema_extra["update_type"], "name", None)
    if key == "autoscaling_config" or kind in ("LightWeight", "NeedsReconfigure"):
        return Effect.SETTINGS
    return Effect.RECONFIGURE if kind == "NeedsActorReconfigure" else Effect.RESTART


def _differs(before: Config, after: Config, current: Config, key: str) -> bool:
    """Whether a key's value changes; one that is new in the file may be what the code says already."""
    if key in before and key in after:
        return bool(before[key] != after[key])
    if key in after:
        return not _covers(current.get(key), after[key])
    return True  # back to what the code says, which is not told


def _replicas(now: int, after: Config) -> tuple[int, int] | None:
    scaling = after.get("autoscaling_config")
    if after.get("num_replicas") == "auto":
        return None
    if scaling:
        wanted = min(max(now, scaling.get("min_replicas", 1)), scaling.get("max_replicas", now))
    else:
        wanted = after.get("num_replicas", 1)
    return None if wanted == now else (now, wanted)


def _covers(current: Any, wanted: Any) -> bool:
    """Whether what is wanted is there, among defaults that nobody named."""
    if isinstance(current, dict) and isinstance(wanted, dict):
        return all(key in current and _covers(current[key], value) for key, value in wanted.items())
    return bool(current == wanted)
