"""Replacing the weights of a running model between two batches; the new weights are loaded and warm before."""

from __future__ import annotations

import ctypes
import logging

from serve_app.config import ClassifierConfig, EngineConfig, WeightsConfig
from serve_app.errors import WeightsError
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.head import Requests
from serve_app.inference.weights import load_weights
from serve_app.messages import ClassifyResult

log = logging.getLogger("serve_app")


class HotSwapModel:
    """Runs batches on the current weights; one batch never runs on two sets of weights. ``change`` warms the model up.

    Attributes:
        engine: The engine that serves now.
        weights: Where its weights were loaded from.

    Raises:
        WeightsError: The weights cannot be loaded.
        EngineError: The runtime cannot run here.
    """

    def __init__(self, weights: WeightsConfig, config: EngineConfig, cores: int) -> None:
        self._initial, self._cores = weights, cores
        self.weights, self.engine = weights, _load(weights, config, cores)
        # The runtime that was fastest at the start stays: a measurement under load could choose another one.
        # Its name may end with the precision.
        runtime = config.runtime if config.precision == "int8" else self.engine.runtime.partition(" ")[0]
        self.config = EngineConfig.model_validate({"runtime": runtime, "precision": config.precision})

    def classify(self, requests: Requests) -> list[ClassifyResult]:
        """Classify a batch on the current weights; see ResNetEngine.classify."""
        return self.engine.classify(requests)

    def change(self, config: ClassifierConfig) -> None:
        """Apply other settings. This takes seconds; the current weights serve meanwhile, and if it fails.

        Raises:
            WeightsError: The weights cannot be loaded, or take crops of another size.
            EngineError: The runtime cannot run them.
        """
        target = config.weights or self._initial
        if target == self.weights:
            self.engine.warm_up(config.max_batch_size)
            return
        new = _load(target, self.config, self._cores, serving=True)
        old_card, new_card = self.engine.card, new.card
        old_px, new_px = ((card.transform.resize_px, card.transform.crop_px) for card in (old_card, new_card))
        if new_px != old_px:
            raise WeightsError(
                f"weights {target.source}: they take crops of {new_px[1]} px from images of {new_px[0]} px, but the "
                f"Preprocessor makes crops of {old_px[1]} px from images of {old_px[0]} px. Deploy them as another "
                "variant, see docs/updates.md"
            )
        new.warm_up(config.max_batch_size)
        self.weights, self.engine = target, new
        log.info("weights: %s replaced %s", new_card.version, old_card.version)


def _load(weights: WeightsConfig, config: EngineConfig, cores: int, serving: bool = False) -> ResNetEngine:
    arrays, card = load_weights(weights)
    engine = ResNetEngine(arrays, card, config, cores, serving)
    del arrays
    _return_freed_memory()
    return engine


def _return_freed_memory() -> None:
    """Give the memory that only loading needed back to the system; glibc would keep it for later."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc has it, other C libraries do not
        trim(0)
