"""Refuse weights whose model card shows a lower accuracy than the model that serves now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError
from serve_app.inference.card import load_card
from serve_app.release.rollout import RefusedError
from serve_app.release.serve_config import APP, MODEL, Config, configured_weights

Card = Mapping[str, Any]


def refuse_worse(config: Config, served: Sequence[Card]) -> Iterator[str]:
    """Compare the accuracy of new weights with every served model, on test images that both cards report.

    ``config`` is checked; ``served`` are model cards as ``GET /v1/models`` returns them. Yields a sentence per
    comparison; raises RefusedError if the new weights are less accurate than a served model.
    """
    served_hashes = {card["sha256"] for card in served}
    for app in config["applications"]:
        if app["import_path"] not in (APP, MODEL):
            continue
        weights = WeightsConfig.model_validate(configured_weights(app) or {})
        if weights.sha256 in served_hashes or weights.source == "imagenet":  # imagenet's card has no measurements
            continue
        try:
            card = load_card(weights).model_dump()
        except WeightsError as error:  # the path may exist on the cluster's nodes only
            yield f"not compared with the served model: {error}"
            continue
        if card["sha256"] not in served_hashes:
            yield from _compare(card, served)


def _compare(card: Card, served: Sequence[Card]) -> Iterator[str]:
    for other in served:
        results = list(_common_results(card, other))
        if not results:
            yield f"not compared: {card['version']} and {other['version']} (served) have no test data in common"
        for dataset, new, old in results:
            comparison = f"accuracy on {dataset}: {card['version']} {new:.2%}, {other['version']} (served) {old:.2%}"
            if new < old:
                raise RefusedError(f"{comparison}; the new weights are worse: use --force to deploy them anyway")
            yield comparison


def _common_results(card: Card, other: Card) -> Iterator[tuple[str, float, float]]:
    """Yield name and top-1 accuracy of both models for each set of images that both cards report."""
    for name, result in _results(card):
        for _, other_result in _results(other):
            if result["fingerprint"] == other_result["fingerprint"]:
                yield name, result["top1"], other_result["top1"]


def _results(card: Card) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, result in card["metrics"].items():
        if isinstance(result, Mapping) and {"fingerprint", "top1"} <= result.keys():
            yield name, result
