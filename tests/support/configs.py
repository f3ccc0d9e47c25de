"""Serve configs with other values, to start services with or to change them, and what Ray tells of a live one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from serve_app.release.serve_config import Config, read
from tests.support.paths import ROOT


def local() -> Config:
    """What `make run` serves."""
    return read(ROOT / "configs" / "local.yaml")


def deployments(config: Config, name: str, /, app: str | None = None) -> Iterator[Config]:
    """The deployments of that name, in every application or in one."""
    for each in config["applications"]:
        if app in (None, each["name"]):
            yield from (one for one in each["deployments"] if one["name"] == name)


def changed(config: Config, name: str, /, **values: object) -> Config:
    """A copy in which the deployments of that name have other values."""
    copied = copy.deepcopy(config)
    for one in deployments(copied, name):
        one.update(values)
    return copied


def tuned(config: Config, name: str, /, app: str | None = None, **values: object) -> Config:
    """A copy in which those deployments take other user_config values; the rest of it stays."""
    copied = copy.deepcopy(config)
    for one in deployments(copied, name, app):
        one["user_config"] = (one.get("user_config") or {}) | values
    return copied


def state_of(config: Config, at: float = 1.0, status: str = "RUNNING") -> dict[str, Any]:
    """What Ray tells when a config is live."""
    apps = {}
    shared = {key: config[key] for key in ("logging_config",) if key in config}
    for app in config["applications"]:
        stages = {
            one["name"]: {
                "status": "HEALTHY",
                "message": "",
                "target_num_replicas": one.get("num_replicas", 1),
                "replicas": [{"replica_id": f"{at}-{i}", "state": "RUNNING"} for i in range(one["num_replicas"])],
                "deployment_config": {"max_ongoing_requests": 64, "max_surge_percent": 0} | one,
            }
            for one in app["deployments"]
        }
        apps[app["name"]] = {
            "name": app["name"],
            "status": status,
            "message": "",
            "last_deployed_time_s": at,
            # Ray copies the file's logging_config into each application.
            "deployed_app_config": copy.deepcopy(shared | app),
            "deployments": stages,
        }
    return {"applications": apps, "target_capacity": None, "http_options": config.get("http_options")}


def write(config: Config, folder: Path) -> Path:
    """A config file."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
