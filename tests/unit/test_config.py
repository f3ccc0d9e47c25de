"""Settings: every config file is valid, unknown and renamed keys are rejected, every setting is described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config import AppConfig, BatchConfig, IngressConfig, WeightsConfig
from serve_app.launcher.environment import read_ray_env
from serve_app.release.serve_config import ConfigError, built_deployments, check, check_access
from serve_app.settings import FrozenModel, Settings, Unit
from serve_app.validation import parse
from tests.support.paths import ROOT
from tests.support.settings_table import SECTIONS, is_group

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SETTINGS = [
    pytest.param(field, id=f"{section.__name__}.{key}")
    for section in SECTIONS.values()
    for key, field in section.model_fields.items()
    if not is_group(field)
]
RENAMED = [
    pytest.param(section, old, new, id=f"{section.__name__}.{old}")
    for section in SECTIONS.values()
    if issubclass(section, Settings)
    for old, new in section.renamed.items()
]


def load(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / name).read_text())
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_are_valid(path: Path) -> None:
    """Every file passes the check of `serve-app deploy` and lists all deployments of its applications."""
    config = load(path.name)
    check(config)
    check_access(config, config["http_options"]["host"])
    for app in config["applications"]:
        assert {settings["name"] for settings in app["deployments"]} == set(built_deployments(app))


@pytest.mark.parametrize(
    ("ingress", "sentence"),
    [
        ({"traffic": {"blue": 95, "gren": 5}}, "no variant gren; known variants: blue, green"),
        ({"traffic": {"main": 1}}, "no variant main"),
        ({}, "no variant main"),
        ({"traffic": {"blue": 1}, "shadow": "gren"}, "no variant gren"),
    ],
)
def test_traffic_to_an_unknown_variant_is_rejected(ingress: dict[str, object], sentence: str) -> None:
    """A variant must be an application of the file."""
    config = load("blue-green.yaml")
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
def test_misspelled_keys_are_rejected(where: tuple[str | int, ...], key: str) -> None:
    """An unknown key is an error at every level of the file, although Ray ignores it."""
    config = load("local.yaml")
    inner: Any = config
    for step in where:
        inner = inner[step]
    inner[key] = 1
    with pytest.raises(ConfigError, match=key):
        check(config)


def test_misspelled_actor_options_are_rejected() -> None:
    """An unknown key of `ray_actor_options` is an error."""
    config = load("local.yaml")
    config["applications"][0]["deployments"][2]["ray_actor_options"] = {"num_cpu": 1}
    with pytest.raises(ConfigError, match="num_cpu"):
        check(config)


@pytest.mark.parametrize(("section", "old", "new"), RENAMED)
def test_a_renamed_key_is_an_error_that_names_the_new_key(section: type[FrozenModel], old: str, new: str) -> None:
    """Keys of version 0.1 are rejected with their current name, which exists."""
    assert new in section.model_fields
    with pytest.raises(ValueError, match=rf"^`{old}` was renamed to `{new}`\."):
        parse(section, {old: 1})


def test_a_renamed_key_in_a_group_is_named_with_its_place() -> None:
    """The message holds the path to the group."""
    with pytest.raises(ValueError, match=r"^admission: `max_under_way` was renamed to `max_inflight_images`\."):
        parse(IngressConfig, {"admission": {"max_under_way": 1}})


@pytest.mark.parametrize("old", ["max_queue_wait_s", "max_queue_s"])
def test_a_removed_key_is_an_error_that_says_what_to_do(old: str) -> None:
    """The wait had a setting of its own; now the deadline bounds it, and that setting exists."""
    with pytest.raises(ValueError, match=rf"^admission: `{old}` was removed: a request waits .* `limits.deadline_s`"):
        parse(IngressConfig, {"admission": {old: 1}})
    assert "deadline_s" in IngressConfig().limits.model_dump()


def test_the_files_serve_the_same_graph() -> None:
    """Laptop, GPU and production configs have the same application."""

    def graph(path: Path) -> object:
        (app,) = load(path.name)["applications"]
        return {key: app[key] for key in ("name", "route_prefix", "import_path")}

    first, *others = (graph(path) for path in CONFIGS if path.stem != "blue-green")
    assert all(other == first for other in others)


def test_the_largest_image_fits_through_grpc() -> None:
    """Ray's limit of a gRPC message is above the largest encoded image."""
    assert int(read_ray_env()["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"]) > IngressConfig().limits.max_image_bytes


def test_errors_name_the_place_the_value_and_the_known_names() -> None:
    """Unknown names and values out of range are described in one line."""
    with pytest.raises(ValueError, match=r"max_bach: unknown name. Known names: max_batch_size, max_batch_wait_ms"):
        parse(BatchConfig, {"max_bach": 4})
    with pytest.raises(ValueError, match=r"max_batch_size: .*greater than or equal to 1 \(got 0\)"):
        parse(BatchConfig, {"max_batch_size": 0})
    with pytest.raises(ValueError, match=r"limits.max_images"):
        parse(IngressConfig, {"limits": {"max_images": -1}})


def test_weights_may_be_a_plain_string() -> None:
    """A string sets `source`."""
    assert parse(AppConfig, {"weights": "imagenet"}).weights == WeightsConfig(source="imagenet")


@pytest.mark.parametrize("field", SETTINGS)
def test_every_setting_has_a_sentence_and_every_number_a_unit(field: Any) -> None:
    """The settings table needs a description, and the unit of each number."""
    assert field.description
    assert field.description.endswith(".")
    is_number = field.annotation in (int, float, int | None, float | None)
    assert is_number == any(isinstance(entry, Unit) for entry in field.metadata)
