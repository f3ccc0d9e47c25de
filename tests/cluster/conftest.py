"""Ray nodes that end with their test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cluster.nodes import Node


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: Ray creates sockets in it, whose paths are limited to about 100 characters."""
    with TemporaryDirectory(prefix="n", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """The nodes that a test starts; they are killed afterwards, the head last."""
    started: list[Node] = []
    yield started
    for node in reversed(started):
        node.kill()
