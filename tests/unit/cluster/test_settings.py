"""cluster/settings.py: which settings files are accepted, and what is said about the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.settings import ClusterError, Settings, read_settings
from tests.support.paths import ROOT
from tests.unit.cluster.conftest import WriteSettings


def test_the_example_names_every_setting() -> None:
    """settings.example.yaml can be filled in without reading code."""
    text = (ROOT / "cluster" / "settings.example.yaml").read_text()
    names = {line.removeprefix("# ").partition(":")[0] for line in text.splitlines() if ": " in line}
    assert set(Settings.model_fields) <= names


def test_a_set_option_replaces_the_files_value(settings: Settings, write_settings: WriteSettings) -> None:
    """`--set NAME=VALUE` wins over the file."""
    other_image = settings.image.replace("0123", "ffff")
    assert read_settings(write_settings(), [f"image={other_image}"]).image == other_image


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ami": None}, "ami is missing: expected the id of an AMI"),
        ({"image": "registry.example.com/serve:latest"}, "image is malformed: expected an image by digest"),
        ({"subnets": ["subnet-0123456789abcdef0"]}, "subnets is malformed: expected a list of two"),
        ({"color": "red"}, "color is not a setting: remove it, or use one of name, region"),
        ({"certificate": "arn:aws:acm:x"}, "certificate and client_cidr belong together"),
        ({"monthly_budget": 900}, "monthly_budget needs an address: set alarm_email too, or remove it"),
    ],
)
def test_a_wrong_setting_gives_one_sentence(
    write_settings: WriteSettings, changes: dict[str, Any], sentence: str
) -> None:
    """The error names the setting and what is expected, on one line."""
    with pytest.raises(ClusterError, match=sentence) as error:
        read_settings(write_settings(**changes))
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_file_says_what_to_copy(tmp_path: Path) -> None:
    """The error names the example file."""
    with pytest.raises(ClusterError, match=r"copy cluster/settings\.example\.yaml there"):
        read_settings(tmp_path / "none.yaml")
