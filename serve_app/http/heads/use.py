"""What heads say about the images of a request. A head never answers for features of other weights than its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serve_app.deadline import Deadline
from serve_app.errors import InvalidParameterError, UnknownHeadError
from serve_app.heads.stored import HeadEntry, LoadedHead
from serve_app.heads.taught import finite_distance, is_taught_with
from serve_app.http.heads.access import HeadAccess
from serve_app.http.heads.edits import in_store
from serve_app.http.heads.schemas import photo_path
from serve_app.http.responses import to_explanation
from serve_app.http.schemas import HeadAnswer, Prediction, SimilarPhoto, Uncertainty
from serve_app.http.service import Service
from serve_app.http.uploads import Parameters
from serve_app.messages import ClassifyResult, Features
from serve_app.model_card import ModelCard, ModelRef
from serve_app.routing.traffic_split import VariantChoice

MAX_HEADS = 32  # in one request


class OtherWeights(Protocol):
    """Finds the version of a head that belongs to other weights than those of the version that serves."""

    async def version_for(
        self, entry: HeadEntry, model: ModelRef, choice: VariantChoice, deadline: Deadline
    ) -> LoadedHead:
        """Return it, or raise HeadBackboneChangedError (409)."""


@dataclass(frozen=True)
class HeadUse:
    """The heads that one request names, each in the version that served when the request began.

    Attributes:
        heads: By the name that the client gave.
        caller: The API key, which decides whether ids of taught photos are shown.
        keeps_photos: Whether the store has the taught photos.
        other_weights: Asked when a result comes from other weights than the head's.
    """

    heads: Mapping[str, LoadedHead]
    caller: str | None
    keeps_photos: bool
    other_weights: OtherWeights

    def features(self, parameters: Parameters) -> Features:
        """Return what the result has to carry for these heads."""
        return "map" if parameters.explain == "cam" else "pooled"

    def check_classes(self, parameters: Parameters) -> None:
        """Raise InvalidParameterError (422) if a head has no class that the request wants explained."""
        for name, loaded in self.heads.items():
            largest = len(loaded.head.labels) - 1
            if (parameters.explain_class or 0) > largest:
                raise InvalidParameterError(
                    f"explain_class: {parameters.explain_class} is not a class id of head {name!r}; the largest is "
                    f"{largest}"
                )

    async def answers(
        self, result: ClassifyResult, parameters: Parameters, top_k: int, choice: VariantChoice, deadline: Deadline
    ) -> dict[str, HeadAnswer]:
        """Return what each head says about one image.

        Raises:
            HeadBackboneChangedError: The result's weights are not those of a head, and no version is (409).
        """
        answers = {}
        for name, loaded in self.heads.items():
            if not is_taught_with(loaded.head, result.model):
                loaded = await self.other_weights.version_for(loaded.entry, result.model, choice, deadline)
            assert result.embedding is not None  # the request asked for it
            answers[name] = self.answer(loaded, result.embedding, parameters, top_k, result.features)
        return answers

    def answer(
        self,
        loaded: LoadedHead,
        embedding: np.ndarray,
        parameters: Parameters,
        top_k: int,
        features: np.ndarray | None = None,
    ) -> HeadAnswer:
        """Return what a head says about an embedding of its weights; a map of ``features`` explains it."""
        head = loaded.head
        said = head.classify(embedding, top_k)
        explained = None
        if features is not None and features.ndim > 1:
            chosen = said.class_ids[0] if parameters.explain_class is None else parameters.explain_class
            explained = to_explanation(head.class_map(features, chosen))
        similar = None
        if parameters.similar:
            mine = loaded.entry.owner == self.caller
            similar = [
                SimilarPhoto(
                    id=each.example_id if mine else None,
                    class_name=each.class_name,
                    distance=each.distance,
                    photo=photo_path(loaded.entry, each.example_id) if mine and self.keeps_photos else None,
                )
                for each in head.similar(embedding, parameters.similar)
            ]
        return HeadAnswer(
            version=loaded.entry.version,
            predictions=[
                Prediction(label=label, score=score, class_id=class_id)
                for label, score, class_id in zip(said.labels, said.scores, said.class_ids, strict=True)
                if score >= parameters.min_score
            ],
            none_of_these=said.none_of_these,
            distance=said.distance,
            max_distance=finite_distance(said.max_distance),
            uncertainty=Uncertainty(
                margin=said.margin,
                entropy=said.entropy,
                abstain=said.none_of_these or said.scores[0] < said.abstain_below,
            ),
            explanation=explained,
            similar=similar,
        )


class HeadUses:
    """Looks up the heads that requests name."""

    def __init__(self, service: Service, access: HeadAccess, other_weights: OtherWeights) -> None:
        self._service, self._access, self._other_weights = service, access, other_weights

    async def of(self, names: str | None, caller: str | None) -> HeadUse | None:
        """Return the heads of a comma-separated list; None if it names none.

        Raises:
            HeadsOffError: Heads are switched off (404).
            UnknownHeadError: The caller may use no head of that name (404).
            InvalidParameterError: Too many heads (422).
            HeadDamagedError: No version of a head can be read (409).
        """
        wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip())) if names else []
        if not wanted:
            return None
        if len(wanted) > MAX_HEADS:
            raise InvalidParameterError(f"head: {len(wanted)} heads in one request; the limit is {MAX_HEADS}")
        keeps_photos = self._access.heads.config.keep_photos
        heads = {name: await self._load(name, caller) for name in wanted}
        return HeadUse(heads, caller, keeps_photos, self._other_weights)

    def variant(self, use: HeadUse, choice: VariantChoice) -> VariantChoice:
        """Return the variant whose weights the heads belong to, if the chosen one has others and the client named none.

        A variant that the result needs is not replaced by another one.
        """
        cards = self._service.router.cards()
        if choice.named_by_client or _fits(use, cards.get(choice.variant)):
            return choice
        fitting = (variant for variant, card in cards.items() if _fits(use, card))
        return next((VariantChoice(variant, named_by_client=True) for variant in fitting), choice)

    async def _load(self, name: str, caller: str | None) -> LoadedHead:
        """Return a head from memory, else from the disk: it may be a second old, and made at another replica."""
        registry = self._access.heads.registry
        try:
            entry = self._access.visible(name, caller)
        except UnknownHeadError:
            await in_store(registry.refresh)
            entry = self._access.visible(name, caller)
        if loaded := registry.peek(entry.name):
            return loaded
        return await asyncio.to_thread(registry.get, entry.name)


def _fits(use: HeadUse, card: ModelCard | None) -> bool:
    return card is not None and all(is_taught_with(loaded.head, card.ref) for loaded in use.heads.values())
