"""Serve configs for tests: with changed values, as Ray reports them, as files."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from serve_app.config import WeightsConfig
from serve_app.release.serve_config import Config, read
from tests.support.paths import ROOT


def local() -> Config:
    """Return configs/local.yaml, which ``make run`` serves."""
    return read(ROOT / "configs" / "local.yaml")


def in_one_process(config: Config) -> Config:
    """Return a copy of configs/local.yaml in which the Ingress's process has all stages."""
    copied = copy.deepcopy(config)
    (app,) = copied["applications"]
    app["args"]["one_process"] = True
    stages = {deployment["name"]: deployment for deployment in app["deployments"]}
    stages["Ingress"]["user_config"]["classifier"] = stages["Classifier"]["user_config"]
    app["deployments"] = [stages["Ingress"], stages["Teacher"]]
    return copied


def with_weights(config: Config, weights: WeightsConfig) -> Config:
    """Return a copy in which every application with a model loads these weights."""
    copied = copy.deepcopy(config)
    for application in copied["applications"]:
        if "weights" in application.get("args", {}):
            application["args"]["weights"] = weights.model_dump()
    return copied


def deployments(config: Config, name: str, /, app: str | None = None) -> Iterator[Config]:
    """Yield the deployments of that name, in all applications or in ``app``."""
    for application in config["applications"]:
        if app in (None, application["name"]):
            yield from (deployment for deployment in application["deployments"] if deployment["name"] == name)


def changed(config: Config, name: str, /, **values: object) -> Config:
    """Return a copy in which the deployments of that name have these values."""
    copied = copy.deepcopy(config)
    for deployment in deployments(copied, name):
        deployment.update(values)
    return copied


def tuned(config: Config, name: str, /, app: str | None = None, **values: object) -> Config:
    """Return a copy in which those deployments have these values in their ``user_config``, besides its others."""
    copied = copy.deepcopy(config)
    for deployment in deployments(copied, name, app):
        deployment["user_config"] = (deployment.get("user_config") or {}) | values
    return copied


def state_of(config: Config, at: float = 1.0, status: str = "RUNNING") -> dict[str, Any]:
    """Return what Ray's Serve API reports when a config is live since ``at``."""
    apps = {}
    shared = {key: config[key] for key in ("logging_config",) if key in config}
    for app in config["applications"]:
        stages = {
            deployment["name"]: {
                "status": "HEALTHY",
                "message": "",
                "target_num_replicas": deployment.get("num_replicas", 1),
                "replicas": [
                    {"replica_id": f"{at}-{i}", "state": "RUNNING"} for i in range(deployment["num_replicas"])
                ],
                "deployment_config": {"max_ongoing_requests": 64, "max_surge_percent": 0} | deployment,
            }
            for deployment in app["deployments"]
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
    """Write a config file into a folder and return its path."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def required_capacity(bound: str) -> Counter[str]:
    """Return the CPUs and GPUs for ``min`` or ``max`` replicas of configs/production.yaml and a batch job."""
    config, required = read(ROOT / "configs" / "production.yaml"), Counter[str]()
    for deployment in config["applications"][0]["deployments"]:
        scaling, options = deployment.get("autoscaling_config"), deployment["ray_actor_options"]
        replicas = scaling[f"{bound}_replicas"] if scaling else 1
        required["cpu"] += replicas * options["num_cpus"]
        if fraction := options.get("num_gpus"):
            required["gpu"] += math.ceil(replicas / int(1 / fraction))
    (ingress,) = deployments(config, "Ingress")
    required["cpu"] += ingress["user_config"]["jobs"]["workers"]
    return required
