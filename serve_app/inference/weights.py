"""Finds, verifies, reads and copies weights. Imports no torch; torch_model.py makes PyTorch models of them.

Weights that are missing or do not match their hash are an error; no other weights take their place. Nothing is
unpickled here: published weights are safetensors, and imagenet_download.py converts torchvision's pickle to them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError, WeightsUnavailableError
from serve_app.files import CorruptFileError, atomic_write, create_folder, delete_partial_files, read_stored
from serve_app.inference.card import load_card, one_line, weights_uri
from serve_app.inference.child import ChildError, run_child
from serve_app.inference.network import Arrays, check_arrays
from serve_app.inference.storage import open_address
from serve_app.model_card import ModelCard
from serve_app.paths import torch_checkpoints
from serve_app.settings import FrozenModel, Sha256

# safetensors type -> NumPy type of its bytes. bfloat16 is the upper half of a float32.
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
IMAGENET_PROGRAM = "serve_app.inference.imagenet_download"


class ConvertedCopy(FrozenModel):
    """The note beside ImageNet's weights as safetensors: the hash of that file."""

    sha256: Sha256

    def write(self, weights: Path) -> None:
        """Write the note, atomically."""
        with atomic_write(weights.with_suffix(".json")) as unfinished:
            unfinished.write_text(self.model_dump_json())


def load_weights(spec: WeightsConfig) -> tuple[Arrays, ModelCard]:
    """Read and verify the weights of a ResNet-18: float32 arrays by torchvision's names.

    Raises:
        WeightsUnavailableError: The weights cannot be read or downloaded now; a later try can succeed.
        WeightsError: The weights do not match their hash, or do not fit a ResNet-18 with the card's number of labels.
    """
    card = load_card(spec)
    path, digest = _file(spec, card)
    try:
        content = path.read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != digest:
            raise WeightsError(f"weights {spec.source}: sha256 is {found}, expected {digest}")
        arrays = _parse(content)
    except OSError as error:
        raise WeightsUnavailableError(f"weights {spec.source}: cannot read the file: {one_line(error)}") from error
    except SafetensorError as error:
        raise WeightsError(f"weights {spec.source}: cannot read the file: {one_line(error)}") from error
    try:
        check_arrays(arrays, len(card.labels))
    except ValueError as error:
        raise WeightsError(f"weights {spec.source}: not a ResNet-18 with {len(card.labels)} classes: {error}") from None
    return arrays, card


def republish(spec: WeightsConfig, card: ModelCard, folder: Path) -> WeightsConfig:
    """Copy weights to a folder, which may be their own, with another card; torchvision's weights become safetensors.

    Returns:
        The settings that load the copy.
    """
    create_folder(folder)
    source, _ = _file(spec, card)
    path = folder / ("imagenet.safetensors" if spec.source == "imagenet" else source.name)
    if not (path.exists() and path.samefile(source)):
        with atomic_write(path) as unfinished:
            shutil.copyfile(source, unfinished)
    digest = sha256(path)
    write_card(card.model_copy(update={"sha256": digest}), path)
    return WeightsConfig(source=str(path), sha256=digest)


def write_card(card: ModelCard, weights: Path) -> None:
    """Write the card of a weights file beside it, atomically."""
    with atomic_write(weights.with_suffix(".json")) as unfinished:
        unfinished.write_text(json.dumps(card.model_dump(mode="json"), indent=2) + "\n")


def spec_of(text: str) -> WeightsConfig:
    """Convert the argument of a command line to settings: a name, or a local file that exists, by its hash."""
    return WeightsConfig(source=text, sha256=sha256(Path(text)) if text.endswith(".safetensors") else None)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(content: bytes) -> Arrays:
    """Return the floats of a safetensors file as float32; integers, which are counters, are left out."""
    arrays: dict[str, np.ndarray] = {}
    for name, entry in deserialize(content):  # type: ignore[no-untyped-call] # safetensors leaves it so
        if (kind := entry["dtype"]) in FLOATS:
            array = np.frombuffer(entry["data"], FLOATS[kind]).reshape(entry["shape"])
            if kind == "BF16":
                array = (array.astype(np.uint32) << 16).view(np.float32)
            arrays[name] = array.astype(np.float32, copy=False)
    return arrays


def _file(spec: WeightsConfig, card: ModelCard) -> tuple[Path, str]:
    """Return the local safetensors file of weights and the SHA-256 that it must have."""
    if spec.source == "imagenet":
        if not (found := find_imagenet(card.sha256)):
            try:
                run_child(IMAGENET_PROGRAM)
            except (ChildError, OSError) as error:
                raise WeightsUnavailableError(str(error)) from None
            found = find_imagenet(card.sha256)
        if not found:
            raise WeightsUnavailableError(f"weights imagenet: {converted_file(card.sha256)} cannot be read")
        return found
    return _local_copy(weights_uri(spec), card.sha256), card.sha256


def converted_file(digits: str) -> Path:
    """Return the path of ImageNet's weights as safetensors, beside torchvision's own file."""
    return torch_checkpoints() / f"resnet18-{digits}.safetensors"


def find_imagenet(digits: str) -> tuple[Path, str] | None:
    """Return the file of ImageNet's converted weights and its SHA-256; None if it is missing, cut or changed.

    Args:
        digits: The card's SHA-256, of which torchvision publishes 8 digits.
    """
    path = converted_file(digits)
    try:
        digest = read_stored(ConvertedCopy, path.with_suffix(".json")).sha256
        return (path, digest) if sha256(path) == digest else None
    except (OSError, CorruptFileError):
        return None


def _local_copy(uri: str, digest: str) -> Path:
    """Return the file itself if it is local, else a copy that is cached by hash beside torch's downloads."""
    if "://" not in uri:
        return Path(uri)
    cached = torch_checkpoints() / f"{digest}.safetensors"
    try:
        if cached.exists() and sha256(cached) == digest:  # a power cut can leave a file that is cut
            return cached
        create_folder(cached.parent)
        delete_partial_files(cached)
        with atomic_write(cached) as partial:
            with open_address(uri) as source, partial.open("wb") as copy:
                shutil.copyfileobj(source, copy)
            # The hash is checked before the file takes its final name, so a bad download is never cached.
            if (found := sha256(partial)) != digest:
                raise WeightsError(f"weights {uri}: sha256 is {found}, expected {digest}")
    except WeightsError:
        raise
    except Exception as error:  # each storage backend has its own exceptions
        raise WeightsUnavailableError(f"weights {uri}: cannot download: {one_line(error)}") from error
    return cached
