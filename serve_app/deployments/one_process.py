"""All stages in one process, for a service on one machine: ``args: {one_process: true}``.

The Ingress starts stages 2 and 3 in its own process. A variant has no Ingress, so its Classifier starts stage 2.
"""

from __future__ import annotations

from typing import Any

from ray import serve

from serve_app.config import EngineConfig, WeightsConfig
from serve_app.deployments.classifier import Classifier
from serve_app.deployments.handles import LocalHandle
from serve_app.deployments.preprocessor import Preprocessor
from serve_app.model_card import ImageTransform

PREPROCESSOR, CLASSIFIER = Preprocessor.func_or_class, Classifier.func_or_class  # type: ignore[attr-defined] # Ray's


class LocalModel(PREPROCESSOR):  # type: ignore[misc, valid-type] # Ray's decorator hides the class
    """A Preprocessor that calls the Classifier of its own process. Raises what the Classifier raises."""

    async def __init__(self, weights: WeightsConfig, engine: EngineConfig, transform: ImageTransform) -> None:  # type: ignore[misc] # Serve awaits it
        self._model = CLASSIFIER(weights, engine)
        await super().__init__(LocalHandle(self._model), transform)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply other settings of the Classifier."""
        await self._model.reconfigure(user_config)

    async def check_health(self) -> None:
        """Check both stages."""
        self._check_ray()
        await self._model.check_health()


# It has the Classifier's name, because it takes the Classifier's settings.
OneProcess = serve.deployment(name="Classifier", max_ongoing_requests=64, max_queued_requests=1024, user_config={})(
    LocalModel
)


async def start_model(weights: WeightsConfig, engine: EngineConfig, transform: ImageTransform) -> LocalModel:
    """Make a LocalModel. Its constructor is a coroutine, because Ray Serve awaits it in a variant."""
    model = LocalModel.__new__(LocalModel)
    await LocalModel.__init__(model, weights, engine, transform)
    return model
