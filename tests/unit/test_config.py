"""Configuration: every file is valid, misspelled keys are refused, knobs are live where promised."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from serve_app.config import AppConfig, BatchConfig, ClassifierConfig, IngressConfig, WeightsConfig, parse
from serve_app.launcher.environment import read_ray_env
from serve_app.release.serve_config import BUILDERS, ConfigError, check
from tests.support.paths import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_are_valid(path: Path) -> None:
    """Serve takes them, and every key in them means something."""
    config = yaml.safe_load(path.read_text())
    check(config)
    for app in config["applications"]:
        _args, deployments = BUILDERS[app["import_path"]]
        assert {one["name"] for one in app["deployments"]} == set(deployments)


@pytest.mark.parametrize(
    ("ingress", "sentence"),
    [
        ({"traffic": {"blue": 95, "gren": 5}}, "no variant gren; there is blue, green"),
        ({"traffic": {"main": 1}}, "no variant main"),
        ({}, "no variant main"),
        ({"traffic": {"blue": 1}, "shadow": "gren"}, "no variant gren"),
    ],
)
def test_traffic_to_nobody_is_refused(ingress: dict[str, object], sentence: str) -> None:
    """Names that no application of the file has, before anything is deployed."""
    config = yaml.safe_load((ROOT / "configs" / "blue-green.yaml").read_text())
    config["applications"][0]["deployments"][0]["user_config"] = ingress
    with pytest.raises(ConfigError, match=sentence):
        check(config)


@pytest.mark.parametrize(
    ("where", "key"),
    [
        ((), "aplications"),
        (("http_options",), "prot"),
        (("applications", 0), "route_prefixx"),
        (("applications", 0, "args"), "weight"),
        (("applications", 0, "deployments", 2), "max_ongoing_request"),
        (("applications", 0, "deployments", 2, "user_config"), "max_bach"),
    ],
)
def test_misspelled_keys_are_refused(where: tuple[str | int, ...], key: str) -> None:
    """At every level of the file, also where Serve itself would keep quiet."""
    config = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    inner = config
    for step in where:
        inner = inner[step]
    inner[key] = 1
    with pytest.raises(ConfigError, match=key):
        check(config)


def test_misspelled_actor_options_are_refused() -> None:
    config = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    config["applications"][0]["deployments"][2]["ray_actor_options"] = {"num_cpu": 1}
    with pytest.raises(ConfigError, match="num_cpu"):
        check(config)


def test_the_files_differ_only_in_capacity() -> None:
    """Laptop, GPU and production serve the same graph and the same limits."""

    def comparable(path: Path) -> object:
        (app,) = yaml.safe_load(path.read_text())["applications"]
        return {key: app[key] for key in ("name", "route_prefix", "import_path")}

    files = [path for path in CONFIGS if path.stem != "blue-green"]
    assert all(comparable(path) == comparable(files[0]) for path in files)


def test_the_largest_image_fits_through_grpc() -> None:
    assert int(read_ray_env()["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"]) > IngressConfig().limits.max_image_bytes


def test_errors_say_what_and_where() -> None:
    """Unknown names and bad values in one sentence, with the names there are."""
    with pytest.raises(ValueError, match=r"max_bach: unknown name. Known names: max_batch_size, max_batch_wait_ms"):
        parse(BatchConfig, {"max_bach": 4})
    with pytest.raises(ValueError, match=r"max_batch_size: .*greater than or equal to 1 \(got 0\)"):
        parse(BatchConfig, {"max_batch_size": 0})
    with pytest.raises(ValueError, match=r"limits.max_images"):
        parse(IngressConfig, {"limits": {"max_images": -1}})


def test_weights_may_be_a_plain_name() -> None:
    assert parse(AppConfig, {"weights": "imagenet"}).weights == WeightsConfig(source="imagenet")


def test_every_knob_has_its_sentence() -> None:
    for kind in (AppConfig, ClassifierConfig, IngressConfig):
        for name, field in kind.model_fields.items():
            inner = getattr(field.annotation, "model_fields", {name: field})
            assert all(each.description for each in inner.values()), name
