"""A model in the Ingress's process is part of the Ingress's health."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.deployments.ingress import Ingress
from serve_app.deployments.one_process import LocalModel
from serve_app.errors import ModelFailedError


class HungModel:
    """A stage whose health check fails."""

    async def check_health(self) -> None:
        raise ModelFailedError("the model hangs")


@pytest.mark.parametrize("stage", [LocalModel, Ingress.func_or_class])  # type: ignore[attr-defined] # Ray's
async def test_a_hung_model_fails_the_check_of_its_process(stage: Any) -> None:
    """Else Ray Serve would never replace the replica."""
    with pytest.raises(ModelFailedError):
        await stage.check_health(SimpleNamespace(_check_ray=lambda: None, _model=HungModel()))


async def test_an_ingress_without_a_model_is_healthy() -> None:
    await Ingress.func_or_class.check_health(SimpleNamespace(_check_ray=lambda: None, _model=None))  # type: ignore[attr-defined] # Ray's
