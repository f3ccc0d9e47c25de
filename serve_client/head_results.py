"""What the service returns about heads, as frozen dataclasses with the field names of the API."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from serve_client.results import HeadAnswer


@dataclass(frozen=True)
class TaughtPhoto:
    """A photo that a head was taught with; ``photo`` is its path at the service, None if it was not kept."""

    id: str
    class_name: str
    added: datetime
    photo: str | None = None


@dataclass(frozen=True)
class SuggestedPhoto:
    """A photo that waits for the approval of the head's owner.

    Attributes:
        caller: Name of the API key that sent it; None without keys.
        expires: When it is deleted if nobody decides.
        photo: Its path at the service; None if it was not kept.
        answer: What the head says about it now; None if other weights than the head's made its embedding.
    """

    id: str
    class_name: str
    caller: str | None
    added: datetime
    expires: datetime
    photo: str | None = None
    answer: HeadAnswer | None = None


@dataclass(frozen=True)
class SuggestionReceipt:
    """What the service stored of the photos that a caller suggested; ``warnings`` say what it ignored."""

    ids: tuple[str, ...]
    warnings: tuple[str, ...] | None = None


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
        suggestions: Number that waits for the caller's approval; None if another API key owns the head.
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
    suggestions: int | None = None
    versions: tuple[str, ...] = ()
    examples: tuple[TaughtPhoto, ...] = ()
    report: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] | None = None
