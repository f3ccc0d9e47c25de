"""Teach a head, and change what it was taught: photos -> examples -> fit -> a new version."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from serve_app.deadline import Deadline
from serve_app.errors import (
    HeadBackboneChangedError,
    InvalidParameterError,
    NotReadyError,
    PreconditionFailedError,
    TooManyClassesError,
    TooManyHeadsError,
    TooManyPhotosError,
    UnknownHeadError,
)
from serve_app.heads.examples import Example
from serve_app.heads.fit import Fitted
from serve_app.heads.stored import HeadEntry
from serve_app.heads_config import HeadsConfig
from serve_app.http.heads.uploads import Photo
from serve_app.http.preconditions import Preconditions
from serve_app.http.service import Heads, Service
from serve_app.model_card import ModelRef

MAX_TRIES = 5  # changes of others between reading a head and writing it, for requests without If-Match
P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("serve_app")


@dataclass(frozen=True)
class Edit:
    """How a request changes the examples of a head."""

    examples: Sequence[Example]
    photos: Mapping[str, bytes] = field(default_factory=dict)  # new files to keep, by example id
    forget: Collection[str] = ()  # ids of examples that no version may hold any longer
    backbone: ModelRef | None = None  # weights of new examples; None if there are none


async def in_store(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a method of the store in a thread; raise NotReadyError (503) if its folder cannot be used."""
    try:
        return await asyncio.to_thread(call, *args, **kwargs)
    except OSError as error:
        log.error("heads: the folder cannot be used: %s", error)
        reason = error.strerror or type(error).__name__
        raise NotReadyError(
            f"the folder of heads (`heads.folder`) cannot be used now: {reason}; retry later"
        ) from error


class HeadEditor:
    """Writes new versions of the heads of one owner.

    Args:
        service: The ingress replica.
        heads: Limits, store and registry.
        owner: The caller's API key.
        deadline: Of the request; a fit that takes longer is given up.
    """

    def __init__(self, service: Service, heads: Heads, owner: str | None, deadline: Deadline) -> None:
        self._service, self._owner, self._deadline = service, owner, deadline
        self._config, self._store, self._registry = heads

    async def find(self, stored_name: str) -> HeadEntry | None:
        """Return a head of this owner from the disk, or None."""
        try:
            return await in_store(self._store.entry, stored_name)
        except UnknownHeadError:
            return None

    async def replace(
        self, stored_name: str, edit: Edit, public: bool | None, conditions: Preconditions
    ) -> tuple[HeadEntry, bool]:
        """Write a head from new examples alone; return it, and whether it is new.

        Raises:
            PreconditionFailedError: ``conditions`` do not hold (412).
            TooManyHeadsError: The owner has too many heads, or bytes of them (409).
            ServiceError: See Service.fit_head.
        """
        assert edit.backbone is not None
        await self._check_bytes(edit)
        fitted = await self._fit(edit.examples, edit.backbone)
        for _ in range(MAX_TRIES):
            before = await self.find(stored_name)
            conditions.check(before.etag if before else None)
            try:
                entry = await self._write(stored_name, fitted, edit, before, public)
            except (PreconditionFailedError, UnknownHeadError):  # somebody was faster
                continue
            return entry, before is None
        raise NotReadyError("others change this head all the time; retry later")

    async def change(
        self, stored_name: str, make: Callable[[Sequence[Example]], Edit], conditions: Preconditions
    ) -> HeadEntry:
        """Write a head from the examples that it has and ``make`` changes.

        Raises:
            UnknownHeadError: There is no such head, or ``make`` raised it (404).
            HeadBackboneChangedError: New examples come from other weights than the old ones (409).
            PreconditionFailedError: ``conditions`` do not hold (412).
            ServiceError: See Service.fit_head.
        """
        for _ in range(MAX_TRIES):
            stored = await in_store(self._store.read, stored_name)
            conditions.check(stored.entry.etag)
            edit = make(stored.examples)
            backbone = stored.entry.backbone
            if edit.backbone is not None and edit.backbone.sha256 != backbone.sha256:
                raise HeadBackboneChangedError(
                    f"the head was taught on weights {backbone.version!r}, and {edit.backbone.version!r} serve now; "
                    "send all its photos again with PUT"
                )
            check_size(Counter(example.class_name for example in edit.examples), self._config)
            await self._check_bytes(edit)
            fitted = await self._fit(edit.examples, backbone)
            try:
                return await self._write(stored_name, fitted, edit, stored.entry, None)
            except PreconditionFailedError:
                continue
        raise NotReadyError("others change this head all the time; retry later")

    async def _write(
        self, stored_name: str, fitted: Fitted, edit: Edit, before: HeadEntry | None, public: bool | None
    ) -> HeadEntry:
        entry = await in_store(
            self._store.write,
            stored_name,
            fitted,
            edit.examples,
            owner=self._owner,
            public=public,
            if_match=before.etag if before else None,
            if_absent=before is None,
            photos=edit.photos,
            forget=edit.forget,
            max_heads=self._config.max_heads,
        )
        await in_store(self._registry.refresh)
        return entry

    async def _fit(self, examples: Sequence[Example], backbone: ModelRef) -> Fitted:
        if not examples:
            raise InvalidParameterError("a head needs a photo; to remove the last one, delete the head")
        try:
            async with asyncio.timeout(self._deadline.left_s()):
                return await self._service.fit_head(examples, backbone)
        except TimeoutError:
            raise self._deadline.exceeded() from None

    async def _check_bytes(self, edit: Edit) -> None:
        """Raise TooManyHeadsError (409) if the owner's heads would have too many bytes."""
        own = [entry.name for entry in self._registry.entries() if entry.owner == self._owner]
        used = sum([await in_store(self._store.size, name) for name in own])
        new = sum(example.embedding.nbytes for example in edit.examples) + sum(map(len, edit.photos.values()))
        if used + new > self._config.max_bytes:
            raise TooManyHeadsError(
                f"your heads have {used / 2**20:.1f} MB and this one adds {new / 2**20:.1f} MB (limit: "
                f"`heads.max_bytes` = {self._config.max_bytes / 2**20:.1f} MB); delete a head"
            )


def without_duplicates(
    photos: Iterable[Photo], known: Iterable[Example], warnings: list[str], known_as: str = "taught"
) -> list[Photo]:
    """Leave out photos that their class has already, and name them in ``warnings``."""
    seen = {(example.class_name, example.photo_sha256) for example in known}
    kept = []
    for photo in photos:
        key = (photo.class_name, photo.sha256)
        if key in seen:
            warnings.append(f"class {photo.class_name!r}, photo {photo.name}: {known_as} already and was ignored")
        else:
            seen.add(key)
            kept.append(photo)
    return kept


def check_size(photos: Mapping[str, int], config: HeadsConfig) -> None:
    """Raise TooManyClassesError or TooManyPhotosError (413) for a head with this number of photos by class."""
    if len(photos) > config.max_classes:
        raise TooManyClassesError(f"{len(photos)} classes (limit: `heads.max_classes` = {config.max_classes})")
    for class_name, count in photos.items():
        if count > config.max_photos_per_class:
            raise TooManyPhotosError(
                f"class {class_name!r} has {count} photos (limit: `heads.max_photos_per_class` = "
                f"{config.max_photos_per_class})"
            )
    if (total := sum(photos.values())) > config.max_photos:
        raise TooManyPhotosError(f"the head has {total} photos (limit: `heads.max_photos` = {config.max_photos})")
