"""Weights + a registry -> the same files under a name of their own, ready to be served.

``python -m serve_app.training.publish OUT/model.safetensors ROOT`` copies weights and card to
``ROOT/<name>/<version>-<hash>.safetensors`` and ``.json``. ROOT is a folder or a bucket (``s3://…``); the hash
is of the card, which holds that of the weights. So a name always means the same, nothing is ever replaced, and the
registry needs no server.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from pathlib import Path

import fsspec

from serve_app.config import WeightsConfig
from serve_app.errors import ServiceError, WeightsError
from serve_app.inference.card import load_card, one_line
from serve_app.inference.weights import spec_of

DIGITS = 8


def publish_to(root: str, weights: Path) -> WeightsConfig:
    """Copy weights and card into a registry; the card last, so that no reader finds it without its weights.

    Args:
        root: Folder or URI.
        weights: A safetensors file with its card beside it.

    Returns:
        Where they are.

    Raises:
        WeightsError: The card is not valid, or the registry cannot be written.
    """
    spec = spec_of(str(weights))
    card = load_card(spec)
    described = weights.with_suffix(".json")
    digest = hashlib.sha256(described.read_bytes()).hexdigest()[:DIGITS]
    address = f"{root.rstrip('/')}/{card.name}/{card.version}-{digest}"
    try:
        for source, suffix in ((weights, ".safetensors"), (described, ".json")):
            storage, path = fsspec.core.url_to_fs(address + suffix)
            if not storage.exists(path):
                storage.makedirs(path.rpartition("/")[0], exist_ok=True)
                with source.open("rb") as read, storage.open(path, "wb") as written:
                    shutil.copyfileobj(read, written)
    except Exception as error:  # every storage backend raises its own kind
        raise WeightsError(f"{address}: cannot be written: {one_line(error)}") from error
    return WeightsConfig(source=address + ".safetensors", sha256=spec.sha256)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="WEIGHTS", type=Path, help="a .safetensors file with its card beside it")
    parser.add_argument("root", metavar="ROOT", help="folder or bucket that holds published weights")
    asked = parser.parse_args()
    root = asked.root if "://" in asked.root else str(Path(asked.root).resolve())
    try:
        made = publish_to(root, asked.weights)
    except (ServiceError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"weights: {{source: {made.source}, sha256: {made.sha256}}}")


if __name__ == "__main__":
    main()
