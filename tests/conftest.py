"""Fixtures for all tests. Helpers are in tests/support."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from serve_app.config import WeightsConfig
from serve_app.release.serve_config import Config
from tests.support.configs import local
from tests.support.photos import make_photo
from tests.support.running import Running, start
from tests.support.weights import publish_random


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
