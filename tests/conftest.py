"""Fixtures for all tests. Helpers are in tests/support."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_app.config import WeightsConfig
from serve_app.paths import CACHE_VARIABLE
from serve_app.release.serve_config import Config
from tests.support.configs import local
from tests.support.photos import make_photo
from tests.support.running import Running, start
from tests.support.weights import publish_random


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Replace the user's cache by a folder, for all tests and the services that they start."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> WeightsConfig:
    """Random weights on disk, for a network of six classes and 96 px crops."""
    return publish_random(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def config() -> Config:
    """configs/local.yaml, parsed."""
    return local()


@pytest.fixture
def photo() -> Callable[..., bytes]:
    """``make_photo``."""
    return make_photo


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """The service that ``make run`` starts with the tiny model; browser and service tests share it."""
    with start() as service:
        yield service
