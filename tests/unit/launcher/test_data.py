"""What `serve-app run` stores: the folders that replicas and page agree on, the line that says so, the one switch."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app import paths
from serve_app.launcher import data
from serve_app.paths import DATA_VARIABLE, data_folder, data_path
from serve_app.release.serve_config import Config, read
from tests.support.configs import tuned
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["local", "gpu", "production", "blue-green"])
def test_every_config_keeps_log_and_votes_without_photos_and_within_bounds(name: str, folder: Path) -> None:
    config = read(ROOT / "configs" / f"{name}.yaml")
    settings = data.stored(config)
    assert settings.prediction_log
    assert settings.feedback
    assert not settings.feedback.keep_images
    assert settings.feedback.keep_days
    assert data.environment(config) == {
        DATA_VARIABLE: str(folder),
        "PREDICTION_LOG": str(folder / "predictions"),
        "FEEDBACK_FOLDER": str(folder / "feedback"),
    }


def test_one_option_switches_both_off(config: Config, folder: Path) -> None:
    """`--no-log`: the page gets no folder, and the line says that nothing is stored."""
    data.switch_off(config)
    assert data.environment(config) == {DATA_VARIABLE: str(folder)}
    assert data.describe(config) == "nothing: no prediction log, no votes"
    assert data.stored(config).jobs


def test_the_line_says_what_is_stored_where_and_for_how_long(config: Config, folder: Path) -> None:
    assert data.describe(config) == (
        f"{folder}/feedback and {folder}/predictions: a row per image, no photos (90 days, 1024 MiB), "
        "votes (90 days); off: --no-log"
    )
    photos = tuned(config, "Ingress", feedback={"folder": "/votes", "keep_images": True}, prediction_log=None)
    assert data.describe(photos) == "/votes: votes and their photos (kept); off: --no-log"


def test_a_bucket_is_no_folder_of_the_page(config: Config) -> None:
    bucket = tuned(config, "Ingress", prediction_log={"folder": "s3://bucket/predictions"})
    assert "PREDICTION_LOG" not in data.environment(bucket)
    assert "s3://bucket/predictions" in data.describe(bucket)


def test_the_data_folder_is_this_users_alone(folder: Path) -> None:
    """Another user of the machine cannot read it; one that cannot be created stops nothing."""
    data.create_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.write_text("a file in its place")
    data.create_folder()


def test_where_the_data_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SERVE_APP_DATA, else the checkout, else the user's folder for state; absolute paths and URIs stay."""
    assert data_path("predictions") == str(tmp_path / "data" / "predictions")
    assert [data_path(name) for name in ("/a/b", "s3://bucket/a")] == ["/a/b", "s3://bucket/a"]
    monkeypatch.delenv(DATA_VARIABLE)
    assert data_folder() == ROOT / ".data"
    monkeypatch.setattr(paths, "IS_CHECKOUT", False)  # an installed wheel
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert data_folder() == tmp_path / "state" / "serve-app"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".local" / "state" / "serve-app"
