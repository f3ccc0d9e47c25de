"""What the files of a head hold, as types, and how a version becomes bytes and back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from serve_app.errors import HeadDamagedError, HeadFormatError
from serve_app.heads.examples import Example
from serve_app.heads.fit import Fitted
from serve_app.heads.report import Accuracy, HeadReport
from serve_app.heads.taught import TaughtHead, references_of
from serve_app.model_card import ModelRef
from serve_app.settings import FrozenModel, Sha256

DIGEST = 8  # digits of the SHA-256 of head.json in the name of a version


class HeadEntry(FrozenModel):
    """The pointer file of a head: which version serves, and what a list of heads shows."""

    name: str
    version: str = Field(description="The version that serves: a number that grows, and a part of a SHA-256.")
    versions: tuple[str, ...] = Field(description="All kept versions, the oldest first.")
    revision: int = Field(description="Grows with every change, so that an ETag names one state of the head.")
    owner: str | None = Field(description="Name of the API key that made the head; None without keys.")
    public: bool = Field(default=False, description="Whether other keys may read and use the head.")
    created: str = Field(description="ISO 8601, UTC.")
    updated: str = Field(description="ISO 8601, UTC.")
    kind: Literal["classes", "one_class"]
    labels: tuple[str, ...]
    photos: int
    accuracy: Accuracy | None
    backbone: ModelRef

    @property
    def etag(self) -> str:
        """The entity tag of this state, with its quotes (RFC 9110, 8.8.3)."""
        return f'"{self.revision}-{self.version}"'


class StoredExample(FrozenModel):
    """An example without its embeddings."""

    id: str
    class_name: str
    photo_sha256: str
    added: str
    kept_photo: bool


class VersionRecord(FrozenModel):
    """Content of head.json. A version's name ends in digits of its SHA-256, so damage to any file is noticed."""

    owner: str | None
    created: str = Field(description="When the head was made, ISO 8601, UTC.")
    updated: str = Field(description="When this version was made.")
    labels: tuple[str, ...]
    backbone: ModelRef
    max_distance: float | None = Field(description="None without a threshold.")
    abstain_below: float
    examples: tuple[StoredExample, ...]
    report: HeadReport
    tensors_sha256: Sha256 = Field(description="Of head.safetensors.")


@dataclass(frozen=True, slots=True, eq=False)
class LoadedHead:
    """One version as it serves."""

    entry: HeadEntry
    head: TaughtHead


@dataclass(frozen=True, slots=True, eq=False)
class StoredHead:
    """One version with all that it was made from."""

    entry: HeadEntry
    head: TaughtHead
    report: HeadReport
    examples: tuple[Example, ...]


def encode_tensors(head: TaughtHead, examples: Sequence[Example]) -> bytes:
    """Return the content of head.safetensors; embeddings are rounded to float16."""
    return save(
        {
            "weight": np.ascontiguousarray(head.weight, np.float32),
            "bias": np.ascontiguousarray(head.bias, np.float32),
            "embeddings": np.array([example.embedding for example in examples], np.float16),
            "mirrored": np.array([example.mirrored for example in examples], np.float16),
        }
    )


def to_stored(example: Example) -> StoredExample:
    """Return an example without its embeddings."""
    return StoredExample(**{name: getattr(example, name) for name in StoredExample.model_fields})


def make_record(
    fitted: Fitted, examples: Sequence[Example], tensors: bytes, *, owner: str | None, created: str, updated: str
) -> VersionRecord:
    """Return the content of head.json."""
    head = fitted.head
    return VersionRecord(
        owner=owner,
        created=created,
        updated=updated,
        labels=head.labels,
        backbone=head.backbone,
        max_distance=head.max_distance if math.isfinite(head.max_distance) else None,
        abstain_below=head.abstain_below,
        examples=tuple(map(to_stored, examples)),
        report=fitted.report,
        tensors_sha256=hashlib.sha256(tensors).hexdigest(),
    )


def version_name(number: int, record: bytes) -> str:
    """Return the name of a version from its place in the order and its head.json."""
    return f"{number:06d}-{hashlib.sha256(record).hexdigest()[:DIGEST]}"


def version_number(version: str) -> int:
    """Return the place of a version in the order."""
    return int(version.partition("-")[0])


def make_entry(
    name: str, version: str, versions: Sequence[str], record: VersionRecord, *, revision: int, public: bool
) -> HeadEntry:
    """Return the pointer to a version."""
    return HeadEntry(
        name=name,
        version=version,
        versions=tuple(versions),
        revision=revision,
        owner=record.owner,
        public=public,
        created=record.created,
        updated=record.updated,
        kind=record.report.kind,
        labels=record.labels,
        photos=len(record.examples),
        accuracy=record.report.accuracy,
        backbone=record.backbone,
    )


def decode_record(content: bytes, version: str) -> VersionRecord:
    """Return head.json as a type.

    Raises:
        HeadDamagedError: It is not the file that the version was named after (409).
        HeadFormatError: A newer version of the service wrote it (409).
    """
    if not version.endswith(f"-{hashlib.sha256(content).hexdigest()[:DIGEST]}"):
        raise HeadDamagedError(f"version {version}: head.json is damaged")
    try:
        return VersionRecord.model_validate_json(content, extra="ignore")  # a newer version may have added fields
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise HeadFormatError(
            f"version {version}: another version of the service wrote head.json ({where}); update the service"
        ) from None


def decode_head(record: VersionRecord, tensors: bytes) -> tuple[TaughtHead, tuple[Example, ...]]:
    """Return a version as it serves, and its examples.

    Raises:
        HeadDamagedError: head.safetensors is not the file that belongs to head.json (409).
    """
    if hashlib.sha256(tensors).hexdigest() != record.tensors_sha256:
        raise HeadDamagedError("head.safetensors is damaged")
    try:
        arrays = load(tensors)
        weight, bias, embeddings, mirrored = (arrays[name] for name in ("weight", "bias", "embeddings", "mirrored"))
    except (SafetensorError, KeyError):
        raise HeadFormatError("another version of the service wrote head.safetensors; update the service") from None
    class_ids = {label: class_id for class_id, label in enumerate(record.labels)}
    head = TaughtHead(
        labels=record.labels,
        weight=weight,
        bias=bias,
        references=references_of(embeddings),
        reference_classes=np.array([class_ids[example.class_name] for example in record.examples], np.int64),
        reference_ids=tuple(example.id for example in record.examples),
        max_distance=math.inf if record.max_distance is None else record.max_distance,
        abstain_below=record.abstain_below,
        backbone=record.backbone,
    )
    examples = (
        Example(embedding=embedding.astype(np.float32), mirrored=mirror.astype(np.float32), **stored.model_dump())
        for stored, embedding, mirror in zip(record.examples, embeddings, mirrored, strict=True)
    )
    return head, tuple(examples)
