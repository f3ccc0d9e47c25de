"""Stage 3/3 · other weights take over between two batches, loaded and warm before they do. Knows no Ray."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.config import ClassifierConfig, EngineConfig, WeightsConfig
from serve_app.errors import InvalidParameterError, WeightsError
from serve_app.inference.engine import ResNetEngine
from serve_app.inference.weights import load_model
from serve_app.messages import Classification, ClassifyItem, Named
from serve_app.model_card import ModelCard, ModelRef

log = logging.getLogger("serve_app")


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, and what it is."""

    weights: WeightsConfig
    card: ModelCard
    ref: ModelRef
    engine: ResNetEngine


class HotSwapModel:
    """Runs batches on the weights of the moment; a batch is never split between two."""

    def __init__(self, weights: WeightsConfig, engine: EngineConfig, cores: int) -> None:
        """Load and verify the model; ``change`` makes it ready.

        Raises:
            WeightsError, EngineError: It cannot be had; the message is one sentence.
        """
        self._first, self._cores = weights, cores
        self._now = _load(weights, engine, cores)
        # What was fastest at the start still is: measured again under load it might look otherwise.
        runtime = engine.runtime if engine.precision == "int8" else self._now.engine.runtime
        self._spec = EngineConfig.model_validate({"runtime": runtime, "precision": engine.precision})

    @property
    def engine(self) -> EngineConfig:
        """How models are run, with what ``auto`` turned out to be."""
        return self._spec

    @property
    def card(self) -> ModelCard:
        """What serves."""
        return self._now.card

    @property
    def weights(self) -> WeightsConfig:
        """Where what serves is from."""
        return self._now.weights

    @property
    def workers(self) -> int:
        """See ResNetEngine."""
        return self._now.engine.workers

    @property
    def workers_are_cores(self) -> bool:
        """See ResNetEngine."""
        return self._now.engine.workers_are_cores

    def classify(self, items: Sequence[ClassifyItem]) -> list[Named]:
        """Classify a batch, in the words of the weights that do it.

        Raises:
            InvalidParameterError: These weights have no such class to explain.
        """
        now = self._now
        classes = len(now.card.labels)
        for item in items:
            if isinstance(item.explain, int) and item.explain >= classes:
                raise InvalidParameterError(
                    f"explain_class: {item.explain} is not a class id; they end at {classes - 1}"
                )
        return [_named(found, now) for found in now.engine.classify(items)]

    def change(self, tuning: ClassifierConfig) -> None:
        """Get ready for other values, which takes seconds; what serves goes on meanwhile, and if it fails.

        Raises:
            WeightsError, EngineError: It cannot be done; the message is one sentence.
        """
        now = self._now
        wanted = tuning.weights or self._first
        if wanted == now.weights:
            now.engine.warm_up(tuning.max_batch_size)
            return
        new = _load(wanted, self._spec, self._cores, serving=True)
        old_size, new_size = ((each.transform.resize_px, each.transform.crop_px) for each in (now.card, new.card))
        if new_size != old_size:
            raise WeightsError(
                f"weights {wanted.source}: they take crops of {new_size[1]} px from {new_size[0]} px, and the "
                f"preprocess stage makes {old_size[1]} px from {old_size[0]} px: serve them as another variant, "
                "see docs/updates.md"
            )
        new.engine.warm_up(tuning.max_batch_size)
        self._now = new
        log.info("weights: %s gave way to %s", now.card.version, new.card.version)


def _load(weights: WeightsConfig, engine: EngineConfig, cores: int, serving: bool = False) -> Loaded:
    model, card = load_model(weights)
    return Loaded(weights, card, card.ref, ResNetEngine(model, card, engine, cores, serving))


def _named(found: Classification, by: Loaded) -> Named:
    class_ids = {*found.class_ids, *([found.activation_map.class_id] if found.activation_map else [])}
    labels = {class_id: by.card.labels[class_id] for class_id in class_ids}
    return Named(found, by.ref, labels, by.card.abstain_below)
