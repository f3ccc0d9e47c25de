"""Configuration: every file is valid, misspelled keys are refused, knobs are live where promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private import ray_constants
from ray.serve import schema
from ray.serve._private import constants

from serve_app.config import AppConfig, BatchTuning, IngressTuning, WeightsSpec, parse

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
USER_CONFIGS = {"Ingress": IngressTuning, "Classifier": BatchTuning}


def check_serve_config(config: dict[str, Any]) -> None:
    """Validate a Serve config as Serve does, and refuse the keys that Serve would silently drop.

    Raises:
        ValueError: Names the key and where it stands.
    """

    def known(values: dict[str, Any], model: Any, where: str) -> None:
        if unknown := sorted(set(values) - set(model.model_fields)):
            raise ValueError(f"{where}: unknown keys {unknown}")

    known(config, schema.ServeDeploySchema, "file")
    known(config.get("http_options", {}), schema.HTTPOptionsSchema, "http_options")
    known(config.get("logging_config", {}), schema.LoggingConfig, "logging_config")
    for app in config["applications"]:
        known(app, schema.ServeApplicationSchema, app["name"])
        parse(AppConfig, app.get("args"))
        for one in app["deployments"]:
            where = f"{app['name']}.{one['name']}"
            known(one, schema.DeploymentSchema, where)
            known(one.get("ray_actor_options", {}), schema.RayActorOptionsSchema, where)
            known(one.get("autoscaling_config", {}), schema.AutoscalingConfig, where)
            if "user_config" in one:
                parse(USER_CONFIGS[one["name"]], one["user_config"])
    schema.ServeDeploySchema.model_validate(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_are_valid(path: Path) -> None:
    """Serve takes them, and every key in them means something."""
    config = yaml.safe_load(path.read_text())
    check_serve_config(config)
    (app,) = config["applications"]
    assert app["import_path"] == "serve_app.app:build_app"
    assert {one["name"] for one in app["deployments"]} == {"Ingress", "Preprocessor", "Classifier"}


@pytest.mark.parametrize(
    ("where", "key"),
    [
        ((), "aplications"),
        (("http_options",), "prot"),
        (("applications", 0), "route_prefixx"),
        (("applications", 0, "args"), "weight"),
        (("applications", 0, "deployments", 2), "max_ongoing_request"),
        (("applications", 0, "deployments", 2, "user_config"), "max_bach"),
        (("applications", 0, "deployments", 2, "ray_actor_options"), "num_cpu"),
    ],
)
def test_misspelled_keys_are_refused(where: tuple[str | int, ...], key: str) -> None:
    """At every level of the file, also where Serve itself would keep quiet."""
    config = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    inner = config
    for step in where:
        inner = inner[step]
    inner[key] = 1
    with pytest.raises(ValueError, match=key):
        check_serve_config(config)


def test_the_files_differ_only_in_capacity() -> None:
    """Laptop, GPU and production serve the same graph and the same limits."""

    def comparable(path: Path) -> object:
        (app,) = yaml.safe_load(path.read_text())["applications"]
        return {key: app[key] for key in ("name", "route_prefix", "import_path")}

    assert all(comparable(path) == comparable(CONFIGS[0]) for path in CONFIGS)


def test_the_env_file_names_switches_that_ray_has() -> None:
    """A renamed switch would be ignored in silence."""
    source = Path(constants.__file__).read_text() + Path(ray_constants.__file__).read_text()
    lines = (ROOT / "configs" / "ray.env").read_text().splitlines()
    names = [line.split("=")[0] for line in lines if line and not line.startswith("#")]
    assert len(names) > 4
    for name in names:
        assert f'"{name}"' in source or name in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED")


def test_the_largest_image_fits_through_grpc() -> None:
    lines = dict(line.split("=") for line in (ROOT / "configs" / "ray.env").read_text().splitlines() if "=" in line)
    assert int(lines["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"]) > IngressTuning().limits.max_image_bytes


def test_errors_say_what_and_where() -> None:
    """Unknown names and bad values in one sentence, with the names there are."""
    with pytest.raises(ValueError, match=r"max_bach: unknown name. Known names: max_batch, max_wait_ms"):
        parse(BatchTuning, {"max_bach": 4})
    with pytest.raises(ValueError, match=r"max_batch: .*greater than or equal to 1 \(got 0\)"):
        parse(BatchTuning, {"max_batch": 0})
    with pytest.raises(ValueError, match=r"limits.max_images"):
        parse(IngressTuning, {"limits": {"max_images": -1}})


def test_weights_may_be_a_plain_name() -> None:
    assert parse(AppConfig, {"weights": "imagenet"}).weights == WeightsSpec(source="imagenet")


def test_every_knob_has_its_sentence() -> None:
    for kind in (AppConfig, BatchTuning, IngressTuning):
        for name, field in kind.model_fields.items():
            inner = getattr(field.annotation, "model_fields", {name: field})
            assert all(each.description for each in inner.values()), name
