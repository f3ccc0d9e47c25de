"""docs/configuration.md lists every setting as serve_app/config.py declares it."""

from __future__ import annotations

import re

import yaml

from serve_app.config import AppConfig, IngressConfig
from serve_app.release.serve_config import check
from tests.support.settings_table import PAGE, SECTIONS, is_group, page_with, tables


def test_the_settings_tables_are_up_to_date() -> None:
    """The generated part of the page equals what the declarations produce now."""
    assert PAGE.read_text() == page_with(tables()), "run `python -m tests.support.settings_table` to update the tables"


def test_every_group_of_settings_has_a_table() -> None:
    """No setting that a config file can hold is missing from the page."""
    fields = [*AppConfig.model_fields.values(), *IngressConfig.model_fields.values()]
    groups = [field for field in fields if not field.description]
    assert len(groups) == 5
    assert all(is_group(field) for field in groups)
    for key in ("prediction_log", "feedback", "jobs", "images_by_url"):
        assert f"`{key}` of the Ingress" in SECTIONS


def test_the_example_is_a_valid_config() -> None:
    """A reader may copy the YAML of the page."""
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)
    check(yaml.safe_load(example))
