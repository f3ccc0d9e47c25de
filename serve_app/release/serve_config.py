"""Serve config file -> checked mapping. Ray keeps quiet about misspelled keys; this does not."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from serve_app.config import AppConfig, ClassifierConfig, FrozenModel, IngressConfig, parse
from serve_app.routing.traffic_split import MAIN, TrafficSplit

Config = dict[str, Any]
USER_CONFIGS: dict[str, type[FrozenModel]] = {
    "Ingress": IngressConfig,
    "Preprocessor": FrozenModel,
    "Classifier": ClassifierConfig,
}
APP, MODEL, INGRESS = (f"serve_app.app:build_{what}" for what in ("app", "model", "ingress"))
# What each of our builders takes as args, and the deployments it makes.
BUILDERS: dict[str, tuple[type[FrozenModel], tuple[str, ...]]] = {
    APP: (AppConfig, tuple(USER_CONFIGS)),
    MODEL: (AppConfig, ("Preprocessor", "Classifier")),
    INGRESS: (FrozenModel, ("Ingress",)),
}


class ConfigError(Exception):
    """What is wrong with a config file, where, in one sentence."""


def read(path: Path) -> Config:
    """Read a Serve config file, unchecked.

    Raises:
        ConfigError: It is missing, no YAML or holds no applications.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a Serve config: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict) or not isinstance(config.get("applications"), list):
        raise ConfigError(f"{path} cannot be read as a Serve config: it holds no list of `applications`")
    return config


def check(config: Config) -> None:
    """Validate as Serve does, refuse the keys that Serve would silently drop, and check our own values.

    Raises:
        ConfigError: Names the key or value and where it stands.
    """
    # Imported here: Ray reads its switches on import, and the launcher has to set them first.
    from ray.serve import schema

    refuse_unknown(config, schema.ServeDeploySchema, "")
    try:
        schema.ServeDeploySchema.model_validate(config)
        for app in config["applications"]:
            if app["import_path"] in BUILDERS:
                _check_ours(app)
                _check_variants(app, config)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def refuse_unknown(values: Config, model: type[BaseModel], where: str) -> None:
    """Compare keys with a schema's fields, all the way down.

    Raises:
        ConfigError: Names the keys that the schema does not know.
    """
    if unknown := sorted(map(str, set(values) - set(model.model_fields))):
        raise ConfigError(f"{where or 'file'}: unknown {'keys' if unknown[1:] else 'key'} {', '.join(unknown)}")
    for key, value in values.items():
        for inner in _models(model.model_fields[key].annotation):
            for place, each in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(each, dict):
                    name = key if place is None else str(each.get("name", f"{key}.{place}"))
                    refuse_unknown(each, inner, f"{where}.{name}" if where else name)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in typing.get_args(annotation) for model in _models(each)]


def user_config(app: Config, deployment: str) -> Config:
    """What an application's file says for a deployment to take live."""
    found = [one.get("user_config") or {} for one in app.get("deployments", ()) if one["name"] == deployment]
    return found[0] if found else {}


def _check_ours(app: Config) -> None:
    name = app.get("name", "default")
    args, deployments = BUILDERS[app["import_path"]]
    _parse(args, app.get("args"), f"{name}.args")
    for one in app.get("deployments", ()):
        where = f"{name}.{one['name']}"
        if one["name"] not in deployments:
            raise ConfigError(f"{where}: no such deployment; there are {', '.join(deployments)}")
        _parse(USER_CONFIGS[one["name"]], one.get("user_config"), f"{where}.user_config")


def _check_variants(app: Config, config: Config) -> None:
    """Refuse traffic to an application that the file does not hold: it would wait for it for ever."""
    if app["import_path"] == MODEL:
        return
    own = [MAIN] if app["import_path"] == APP else []
    there = own + [one.get("name", "default") for one in config["applications"] if one["import_path"] == MODEL]
    for name in TrafficSplit.from_config(parse(IngressConfig, user_config(app, "Ingress"))).names:
        if name not in there:
            known = ", ".join(there) or f"no application with import_path: {MODEL}"
            raise ConfigError(
                f"{app.get('name', 'default')}.Ingress.user_config.traffic: no variant {name}; there is {known}"
            )


def _parse(kind: type[FrozenModel], values: Any, where: str) -> None:
    try:
        parse(kind, values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
