"""Calls between stages: a lost replica is asked for once more, a refusal is not."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.deployments.handles import call
from serve_app.errors import NotReadyError, OverloadedError

LOST = ActorDiedError()
REFUSED = BackPressureError(num_queued_requests=1, max_queued_requests=1)
GONE = DeploymentUnavailableError.__new__(DeploymentUnavailableError)


class Stage:
    """Answers calls with what it was given, in this order."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    async def __call__(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize("answers", [("ok",), (LOST, "ok")], ids=("at once", "after a lost replica"))
async def test_an_answer_comes(answers: tuple[Any, ...]) -> None:
    assert await call(Stage(*answers), "classify") == "ok"


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ((LOST, LOST, "never asked"), NotReadyError),
        ((REFUSED, "never asked"), OverloadedError),
        ((LOST, REFUSED, "never asked"), OverloadedError),
        ((GONE, "never asked"), NotReadyError),
    ],
    ids=("two lost replicas", "a refusal", "a refusal after a lost replica", "no such stage"),
)
async def test_there_is_one_second_try(answers: tuple[Any, ...], error: type[Exception]) -> None:
    """More would multiply the load of an overloaded or dying service."""
    stage = Stage(*answers)
    with pytest.raises(error, match="classify stage"):
        await call(stage, "classify")
    assert stage.answers == ["never asked"]
