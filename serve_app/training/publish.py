"""Copy weights and card into a registry, under a name that never changes its meaning.

A registry is a folder or a bucket (``s3://…``) and needs no server. The files are
``REGISTRY/<name>/<version>-<hash>.safetensors`` and ``.json``. The hash is of the card, which contains the hash of the
weights, so equal names have equal contents and no file is ever replaced.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError
from serve_app.inference.card import load_card, one_line
from serve_app.inference.storage import copy_to, has_copy
from serve_app.inference.weights import spec_of

HASH_DIGITS = 8


def publish_to(registry: str, weights: Path) -> WeightsConfig:
    """Copy weights and card into a registry; the card last, so that no reader sees it without its weights.

    Raises:
        WeightsError: The card is not valid, or the registry cannot be written to.
    """
    spec = spec_of(str(weights))
    card = load_card(spec)
    card_file = weights.with_suffix(".json")
    digest = hashlib.sha256(card_file.read_bytes()).hexdigest()[:HASH_DIGITS]
    root = registry if "://" in registry else str(Path(registry).resolve())
    address = f"{root.rstrip('/')}/{card.name}/{card.version}-{digest}"
    try:
        for source, suffix in ((weights, ".safetensors"), (card_file, ".json")):
            if not has_copy(source, address + suffix):  # one that was cut by a full disk or a power cut is replaced
                copy_to(source, address + suffix)
    except Exception as error:  # each storage has its own exceptions
        raise WeightsError(f"{address}: cannot write to the registry: {one_line(error)}") from error
    return WeightsConfig(source=address + ".safetensors", sha256=spec.sha256)
