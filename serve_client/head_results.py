"""What the service returns about heads, as frozen dataclasses with the field names of the API."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class TaughtPhoto:
    """A photo that a head was taught with; ``photo`` is its path at the service, None if it was not kept."""

    id: str
    class_name: str
    added: datetime
    photo: str | None = None


@dataclass(frozen=True)
class Head:
    """A head: classes that a caller has taught.

    Attributes:
        version: The version that serves.
        etag: Names this state of the head.
        mine: Whether the caller's API key owns it; others are public.
        kind: ``classes``, or ``one_class``: it only tells photos of the class from others.
        status: ``ready``, or ``backbone_changed``: it was taught on other weights than those that serve.
        labels: Class names by class id.
        photos: Number of taught photos.
        accuracy: On photos that the fit did not see, with its interval; None if it could not be measured.
        versions: Versions that ``roll_back`` can go to, the oldest first.
        examples: The taught photos; empty in a list, and if another API key owns the head.
        report: What the fit found out: docs/heads.md describes its members.
        warnings: What was ignored.
    """

    name: str
    version: str
    etag: str
    mine: bool
    public: bool
    created: datetime
    updated: datetime
    kind: str
    status: str
    labels: tuple[str, ...]
    photos: int
    accuracy: dict[str, Any] | None = None
    versions: tuple[str, ...] = ()
    examples: tuple[TaughtPhoto, ...] = ()
    report: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] | None = None
