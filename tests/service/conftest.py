"""The services that all tests here share, and the order of the tests.

``running`` (tests/conftest.py) is what ``make run`` starts; ``full_service`` has everything turned on. Tests change the
settings of a service while it runs, and the ``cluster`` fixture restores them. Tests marked ``ends_service`` run last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from serve_app.release.rollout import ServeApi, previous_config
from tests.support import services
from tests.support.polling import wait_for
from tests.support.running import Running
from tests.support.services import APPLY_TIMEOUT_S, FullService, StoppedService


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the tests that end a shared service behind those that use it."""
    items.sort(key=lambda item: item.get_closest_marker("ends_service") is not None)


@pytest.fixture
def cluster(running: Running) -> Iterator[ServeApi]:
    """Ray of the service that ``running`` is; restores its config afterwards."""
    cluster = ServeApi(running.dashboard)
    before, model = previous_config(cluster.state()), served_model(running)
    yield cluster
    if previous_config(cluster.state()) != before:
        cluster.apply(before, APPLY_TIMEOUT_S)
        wait_for(lambda: served_model(running) == model, what="the model of before")  # weights load in the background


def served_model(running: Running) -> Any:
    """Return which model answers, from /v1/status."""
    return httpx2.get(f"{running.api}/v1/status", timeout=30).json()["variants"]["main"]["model"]


@pytest.fixture(scope="session")
def full_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FullService]:
    """A service with everything turned on."""
    with services.full_service(tmp_path_factory.mktemp("full")) as service:
        yield service


@pytest.fixture(scope="session")
def stopped_service(full_service: FullService) -> StoppedService:
    """What ``full_service`` left when it was stopped: only tests marked ``ends_service`` may use it."""
    return services.stop_in_progress(full_service)


@pytest.fixture(scope="session")
def mixed_photos() -> dict[str, bytes]:
    """Thirty files by name, of several kinds and sizes; three of them are broken."""
    return services.mixed_photos()
