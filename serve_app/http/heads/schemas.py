"""The JSON of heads: what clients send and receive."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import ConfigDict, Field

from serve_app.heads.report import Accuracy, HeadReport
from serve_app.heads.stored import HeadEntry, StoredHead
from serve_app.heads.suggestions import Suggestion
from serve_app.http.heads.access import shown_name
from serve_app.http.schemas import HeadAnswer
from serve_app.http.uploads import RequestModel
from serve_app.model_card import ModelRef
from serve_app.settings import FrozenModel

Status = Literal["ready", "backbone_changed"]


class HeadSummary(FrozenModel):
    """One head in a list."""

    name: str
    version: str = Field(description="The version that serves.")
    etag: str = Field(description="Names this state of the head, for If-Match.")
    mine: bool = Field(description="Whether the caller's API key owns the head; others are public.")
    public: bool = Field(description="Whether other API keys may use it.")
    created: str = Field(description="ISO 8601, UTC.")
    updated: str = Field(description="ISO 8601, UTC.")
    kind: Literal["classes", "one_class"]
    status: Status = Field(description="backbone_changed: it was taught on other weights than those that serve.")
    labels: tuple[str, ...] = Field(description="Class names by class id.")
    photos: int
    accuracy: Accuracy | None = Field(description="None if it could not be measured.")
    backbone: ModelRef = Field(description="The weights that made its embeddings.")
    suggestions: int | None = Field(
        description="Number that waits for the caller's approval; null if another API key owns the head, and in "
        "GET /v1/models."
    )


class TaughtPhoto(FrozenModel):
    """One taught photo."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)
    id: str
    class_name: str = Field(alias="class")
    added: str = Field(description="ISO 8601, UTC.")
    photo: str | None = Field(description="Path of the photo; null if it was not kept.")


class HeadDocument(HeadSummary):
    """One head: its photos and the report of its fit."""

    versions: tuple[str, ...] = Field(description="Versions that a rollback can go to, the oldest first.")
    keeps_photos: bool = Field(description="Whether the service keeps photos that are taught now.")
    examples: list[TaughtPhoto] = Field(description="Empty if another API key owns the head.")
    report: HeadReport
    warnings: list[str] | None = Field(default=None, description="What was ignored.")


class HeadList(FrozenModel):
    """The heads that the caller may use, and what a new one may be."""

    heads: list[HeadSummary]
    backbone: ModelRef = Field(description="The weights that serve now.")
    keep_photos: bool
    limits: dict[str, int]


class SuggestionReceipt(FrozenModel):
    """What was stored of a request that suggests photos."""

    ids: list[str] = Field(description="Of the suggestions, in the order in which the photos were sent.")
    warnings: list[str] | None = Field(default=None, description="What was ignored.")


class SuggestedPhoto(FrozenModel):
    """A photo that waits for the approval of the head's owner."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)
    id: str
    class_name: str = Field(alias="class", description="The class that is right for whoever sent the photo.")
    caller: str | None = Field(description="Name of the API key that sent it; null without keys.")
    added: str = Field(description="ISO 8601, UTC.")
    expires: str = Field(description="When it is deleted if nobody decides; ISO 8601, UTC.")
    photo: str | None = Field(description="Path of the photo; null if it was not kept.")
    answer: HeadAnswer | None = Field(
        description="What the head says about it now, and the taught photos that are most similar; null if other "
        "weights than the head's made its embedding."
    )


class SuggestionList(FrozenModel):
    """The suggestions that wait for the owner of a head."""

    suggestions: list[SuggestedPhoto] = Field(description="The oldest first.")


class ApproveBody(RequestModel):
    """The body that approves several suggestions."""

    ids: list[str] = Field(min_length=1, max_length=1000, description="Of the suggestions.")


class ShareBody(RequestModel):
    """The body of PATCH on a head."""

    public: bool = Field(strict=True, description="Whether other API keys may use the head.")


class RelabelBody(RequestModel):
    """The body of PATCH on an example."""

    model_config = ConfigDict(populate_by_name=True)
    class_name: str = Field(alias="class", max_length=1000, description="Its class from now on.")


class RollbackBody(RequestModel):
    """The body of a rollback."""

    version: str | None = Field(None, max_length=200, description="By default the version before.")


def summary(entry: HeadEntry, caller: str | None, served: set[str], waiting: int | None = None) -> HeadSummary:
    """Describe a head to a caller.

    Args:
        entry: The head.
        caller: The API key.
        served: SHA-256 of the weights that serve.
        waiting: Number of suggestions, if it is known.
    """
    return HeadSummary(**_summary(entry, caller, served, waiting))


def document(
    stored: StoredHead, caller: str | None, served: set[str], waiting: int, keeps_photos: bool, warnings: list[str]
) -> HeadDocument:
    """Describe a head with its photos and report; only its owner sees which photos there are."""
    entry, report, examples, versions = stored.entry, stored.report, stored.examples, stored.entry.versions
    if entry.owner != caller:
        report = report.model_copy(update={"label_errors": (), "near_duplicates": (), "photos_to_add": ()})
        examples = versions = ()
    return HeadDocument(
        **_summary(entry, caller, served, waiting),
        versions=versions,
        keeps_photos=keeps_photos,
        examples=[
            TaughtPhoto(
                id=example.id,
                class_name=example.class_name,
                added=example.added,
                photo=photo_path(entry, example.id) if example.kept_photo else None,
            )
            for example in examples
        ],
        report=report,
        warnings=warnings or None,
    )


def suggested_photo(entry: HeadEntry, suggestion: Suggestion, answer: HeadAnswer | None) -> SuggestedPhoto:
    """Describe a suggestion to the head's owner."""
    example = suggestion.example
    path = f"/v1/heads/{shown_name(entry)}/suggestions/{example.id}/photo"
    return SuggestedPhoto(
        id=example.id,
        class_name=example.class_name,
        caller=suggestion.caller,
        added=example.added,
        expires=datetime.fromtimestamp(suggestion.expires, UTC).isoformat(),
        photo=path if example.kept_photo else None,
        answer=answer,
    )


def photo_path(entry: HeadEntry, example_id: str) -> str:
    """Return the path of a kept photo."""
    return f"/v1/heads/{shown_name(entry)}/examples/{example_id}/photo"


def _summary(entry: HeadEntry, caller: str | None, served: set[str], waiting: int | None) -> dict[str, object]:
    return {
        "name": shown_name(entry),
        "version": entry.version,
        "etag": entry.etag,
        "mine": entry.owner == caller,
        "public": entry.public,
        "created": entry.created,
        "updated": entry.updated,
        "kind": entry.kind,
        "status": "ready" if entry.backbone.sha256 in served else "backbone_changed",
        "labels": entry.labels,
        "photos": entry.photos,
        "accuracy": entry.accuracy,
        "backbone": entry.backbone,
        "suggestions": waiting if entry.owner == caller else None,
    }
