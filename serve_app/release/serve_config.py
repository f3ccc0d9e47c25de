"""Read and check a Serve config file; Ray accepts misspelled keys silently, this module rejects them."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from serve_app import exposure
from serve_app.config import AppConfig, ClassifierConfig, EngineConfig, IngressConfig, KeysConfig
from serve_app.routing.traffic_split import MAIN, TrafficSplit
from serve_app.settings import FrozenModel
from serve_app.validation import parse

Config = dict[str, Any]
USER_CONFIGS = {
    "Ingress": IngressConfig,
    "Preprocessor": FrozenModel,
    "Classifier": ClassifierConfig,
    "Teacher": FrozenModel,
}
APP, MODEL, INGRESS = (f"serve_app.app:build_{name}" for name in ("app", "model", "ingress"))
# import_path -> type of its args, and the deployments it builds
BUILDERS: dict[str, tuple[type[FrozenModel], tuple[str, ...]]] = {
    APP: (AppConfig, tuple(USER_CONFIGS)),
    MODEL: (AppConfig, ("Preprocessor", "Classifier")),
    INGRESS: (FrozenModel, ("Ingress", "Teacher")),
}
ONE_PROCESS = {APP: ("Ingress", "Teacher"), MODEL: ("Classifier",)}  # those with ``args: {one_process: true}``


class ConfigError(Exception):
    """A config file or an option is wrong; the message is one sentence that names the place."""


def read(path: Path) -> Config:
    """Read a Serve config file without checking its keys; raise ConfigError if it has no list of applications."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as a Serve config: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict) or not isinstance(config.get("applications"), list):
        raise ConfigError(f"{path} cannot be read as a Serve config: it has no list of `applications`")
    return config


def check(config: Config) -> None:
    """Validate a config by Ray's schema and by ``serve_app.config``, and reject keys that Ray would ignore.

    Raises:
        ConfigError: A key is unknown or a value is wrong.
    """
    # Ray reads its environment variables on import; the launcher has to set them first.
    from ray.serve import schema

    reject_unknown_keys(config, schema.ServeDeploySchema)
    try:
        schema.ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for app in config["applications"]:
        if app["import_path"] in BUILDERS:
            _check_settings(app)
            _check_variants(app, config)


def check_access(config: Config, host: str, before: Config | None = None) -> None:
    """Check that a config lets nobody call by mistake, see exposure.check_access.

    Args:
        config: What shall be deployed.
        host: Address by which clients reach the API.
        before: What is deployed now, if anything.

    Raises:
        ConfigError: An Ingress has neither ``keys`` nor ``open: true``, and needs one of them.
    """
    keys_before = any(_requires_keys(app) for app in (before or {}).get("applications", ()))
    for app in config["applications"]:
        if app.get("import_path") in (APP, INGRESS):
            try:
                exposure.check_access(parse(IngressConfig, user_config(app, "Ingress")), host, keys_before)
            except ValueError as error:
                raise ConfigError(f"{app_name(app)}.Ingress.user_config: {error}") from None


def _requires_keys(app: Config) -> bool:
    """Return whether a deployed application requires keys; an unreadable setting counts as one that does."""
    try:
        return parse(KeysConfig, user_config(app, "Ingress").get("keys")).required
    except ValueError:
        return True


def reject_unknown_keys(values: Config, model: type[BaseModel], where: str = "") -> None:
    """Compare the keys of a mapping, and of the mappings in it, with the fields of a schema."""
    if unknown := sorted(map(str, set(values) - set(model.model_fields))):
        raise ConfigError(f"{where or 'file'}: unknown {'keys' if unknown[1:] else 'key'} {', '.join(unknown)}")
    for key, value in values.items():
        for inner in _schemas(model.model_fields[key].annotation):
            for index, element in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(element, dict):
                    name = key if index is None else str(element.get("name", f"{key}.{index}"))
                    reject_unknown_keys(element, inner, f"{where}.{name}" if where else name)


def _schemas(annotation: Any) -> list[type[BaseModel]]:
    """Return the pydantic models in a field's annotation, such as ``list[Model] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in _schemas(argument)]


def app_name(app: Config) -> str:
    """Return the name of an application; Ray's default is ``default``."""
    return str(app.get("name", "default"))


def user_config(app: Config, deployment: str) -> Config:
    """Return the ``user_config`` of a deployment of an application; empty if it has none."""
    for settings in app.get("deployments", ()):
        if settings["name"] == deployment:
            return settings.get("user_config") or {}
    return {}


def built_deployments(app: Config) -> tuple[str, ...]:
    """Return the deployments that one of our applications has; its ``args`` must be valid."""
    args, deployments = BUILDERS[app["import_path"]]
    parsed = parse(args, app.get("args"))
    if isinstance(parsed, AppConfig) and parsed.one_process:
        return ONE_PROCESS[app["import_path"]]
    return deployments


def configured_weights(app: Config) -> Any:
    """Return the weights that an application serves in the end: those of ``user_config`` win over ``args``."""
    classifier = user_config(app, "Classifier") or user_config(app, "Ingress").get("classifier") or {}
    return classifier.get("weights") or app.get("args", {}).get("weights")


def configured_runtime(app: Config) -> str:
    """Return the runtime that an application asks for; ``auto`` if it names none, or has no model of its own."""
    return parse(EngineConfig, app.get("args", {}).get("engine", {})).runtime


def _check_settings(app: Config) -> None:
    _parse(BUILDERS[app["import_path"]][0], app.get("args"), f"{app_name(app)}.args")
    deployments = built_deployments(app)
    for settings in app.get("deployments", ()):
        where = f"{app_name(app)}.{settings['name']}"
        if settings["name"] not in deployments:
            # Only an application of one process, or without a model, has no Classifier.
            hint = "; its settings are `classifier` of the Ingress" if settings["name"] == "Classifier" else ""
            raise ConfigError(f"{where}: no such deployment; this application has {', '.join(deployments)}{hint}")
        _parse(USER_CONFIGS[settings["name"]], settings.get("user_config"), f"{where}.user_config")
    ingress_has_model = app["import_path"] == APP and "Classifier" not in deployments
    if not ingress_has_model and user_config(app, "Ingress").get("classifier") is not None:
        where = f"{app_name(app)}.Ingress.user_config.classifier"
        raise ConfigError(f"{where}: needs args.one_process; else these are settings of the Classifier")


def _check_variants(app: Config, config: Config) -> None:
    """Reject traffic to a variant that the file does not contain: the ingress would wait for it forever."""
    if app["import_path"] == MODEL:
        return
    own = [MAIN] if app["import_path"] == APP else []
    variants = own + [app_name(other) for other in config["applications"] if other["import_path"] == MODEL]
    for name in TrafficSplit.from_config(parse(IngressConfig, user_config(app, "Ingress"))).names:
        if name not in variants:
            known = f"known variants: {', '.join(variants)}" if variants else f"no application has import_path {MODEL}"
            raise ConfigError(f"{app_name(app)}.Ingress.user_config.traffic: no variant {name}; {known}")


def _parse(kind: type[FrozenModel], values: Any, where: str) -> None:
    try:
        parse(kind, values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
