"""Copy weights and card into a registry, under a name that never changes its meaning.

A registry is a folder or a bucket (``s3://…``) and needs no server. The files are
``REGISTRY/<name>/<version>-<hash>.safetensors`` and ``.json``. The hash is of the card, which contains the hash of the
weights, so equal names have equal contents and no file is ever replaced.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import fsspec

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError
from serve_app.files import atomic_write, create_folder
from serve_app.inference.card import load_card, one_line
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
            _copy(source, address + suffix)
    except Exception as error:  # fsspec's backends have no common error type
        raise WeightsError(f"{address}: cannot write to the registry: {one_line(error)}") from error
    return WeightsConfig(source=address + ".safetensors", sha256=spec.sha256)


def _copy(source: Path, address: str) -> None:
    """Copy a file, unless its copy is complete: one that was cut by a full disk or a power cut is replaced."""
    storage, path = fsspec.core.url_to_fs(address)
    if storage.exists(path) and storage.cat_file(path) == source.read_bytes():
        return
    if "file" in (protocols := storage.protocol) or protocols == "file":
        create_folder(Path(path).parent)
        with atomic_write(Path(path)) as unfinished:
            shutil.copyfile(source, unfinished)
        return
    storage.makedirs(path.rpartition("/")[0], exist_ok=True)
    storage.put_file(str(source), path)  # unlike a file object, it leaves no object behind when it fails
