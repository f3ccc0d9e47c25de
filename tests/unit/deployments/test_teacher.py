"""The Teacher fits heads in a thread of its own and returns errors."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from serve_app.deployments import teacher
from serve_app.errors import InvalidParameterError, ServiceError
from tests.support.heads import BACKBONE, examples_around


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Teacher, made as Ray Serve makes it."""
    monkeypatch.setattr(teacher, "prepare_replica", lambda: lambda: None)
    monkeypatch.setattr(teacher, "restore_scheduling", lambda: None)
    kind = teacher.Teacher.func_or_class  # type: ignore[attr-defined] # Ray's
    return kind()


async def test_a_fit_passes_between_processes(made: Any) -> None:
    """Head and report survive pickling, and the head names its classes."""
    await made.prepare()
    await made.check_health()
    examples = examples_around(("mine", "others"), 8)
    fitted = pickle.loads(pickle.dumps(await made(pickle.loads(pickle.dumps(examples)), BACKBONE)))
    assert fitted.head.labels == ("mine", "others")
    assert fitted.head.backbone == BACKBONE
    assert fitted.report.photos == 16
    assert fitted.head.classify(examples[0].embedding, 1).labels == ("mine",)


async def test_errors_are_returned(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Serve would log a raised one as a crash; an unexpected one keeps its text in the log."""
    assert isinstance(await made([], BACKBONE), InvalidParameterError)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(teacher, "fit", fail)
    error = await made(examples_around(("mine",), 1), BACKBONE)
    assert type(error) is ServiceError
    assert "secret" not in str(error)
