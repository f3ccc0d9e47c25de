"""Whether a config brings weights that are known to be worse than those now served: by their cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError
from serve_app.inference.card import load_card
from serve_app.release.rollout import RefusedError
from serve_app.release.serve_config import BUILDERS, INGRESS, Config, user_config

Card = Mapping[str, Any]


def refuse_worse(config: Config, served: Sequence[Card]) -> Iterator[str]:
    """Compare new weights with each model that is served, where both were measured on the same images.

    Args:
        config: Checked.
        served: Cards as ``GET /v1/models`` gives them.

    Yields:
        What was found, in a sentence per pair.

    Raises:
        RefusedError: One is less accurate; says where and by how much.
    """
    known = {card["sha256"] for card in served}
    for spec in new_weights(config):
        if spec.sha256 in known or spec.source == "imagenet":  # nobody has measured that on data of ours
            continue
        try:
            card = load_card(spec).model_dump()
        except WeightsError as error:  # a path on the cluster's nodes
            yield f"not compared with what is served: {error}"
            continue
        if card["sha256"] not in known:
            yield from _compare(card, served)


def new_weights(config: Config) -> Iterator[WeightsConfig]:
    """The weights that a config's applications are to serve in the end."""
    for app in config["applications"]:
        if app["import_path"] in BUILDERS and app["import_path"] != INGRESS:
            weights = user_config(app, "Classifier").get("weights") or app.get("args", {}).get("weights") or {}
            yield WeightsConfig.model_validate(weights)


def _compare(card: Card, served: Sequence[Card]) -> Iterator[str]:
    for other in served:
        pairs = list(_measured_alike(card, other))
        if not pairs:
            yield f"not compared: {card['version']} and {other['version']} (served) have no test data in common"
        for name, new, old in pairs:
            found = f"on {name} {card['version']} is right in {new:.2%}, {other['version']} (served) in {old:.2%}"
            if new < old:
                raise RefusedError(f"{found}: it is worse; --force deploys it all the same")
            yield found


def _measured_alike(card: Card, other: Card) -> Iterator[tuple[str, float, float]]:
    """Name of the data, and accuracy of both, for each set of images that both cards have results of."""
    for name, result in _results(card):
        for _, theirs in _results(other):
            if result["fingerprint"] == theirs["fingerprint"]:
                yield name, result["top1"], theirs["top1"]


def _results(card: Card) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, result in card["metrics"].items():
        if isinstance(result, Mapping) and {"fingerprint", "top1"} <= result.keys():
            yield name, result
