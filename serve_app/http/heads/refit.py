"""Heads of other weights: finds the version that fits, or fits the head again from its kept photos.

While weights are replaced, replicas of the old and of the new ones answer, so both versions of a head are used.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import replace

from serve_app.deadline import Deadline
from serve_app.errors import HeadBackboneChangedError, HeadDamagedError, PreconditionFailedError, UnknownHeadError
from serve_app.heads.stored import HeadEntry, LoadedHead, StoredHead
from serve_app.heads.taught import is_taught_with
from serve_app.http.admission import AdmissionController
from serve_app.http.heads.access import HeadAccess, shown_name
from serve_app.http.heads.edits import in_store
from serve_app.http.heads.photos import PhotoEmbedder
from serve_app.http.heads.uploads import Photo
from serve_app.http.service import Service
from serve_app.model_card import ModelRef
from serve_app.routing.traffic_split import VariantChoice

REFIT_S = 120.0  # longest time to embed the kept photos of a head and to fit it
MAX_FOUND = 64  # versions of other weights that are remembered
Key = tuple[str, str, str]  # head, version that serves, SHA-256 of the weights
log = logging.getLogger("serve_app")


class HeadRefitter:
    """Implements head_use.OtherWeights for one ingress replica.

    Args:
        service: The ingress replica.
        access: Its heads.
        embedder: Embeds kept photos.
        admission: Counts them like images of requests.
    """

    def __init__(
        self, service: Service, access: HeadAccess, embedder: PhotoEmbedder, admission: AdmissionController
    ) -> None:
        self._service, self._access, self._embedder, self._admission = service, access, embedder, admission
        self._tasks: dict[Key, asyncio.Task[LoadedHead]] = {}

    async def version_for(
        self, entry: HeadEntry, model: ModelRef, choice: VariantChoice, deadline: Deadline
    ) -> LoadedHead:
        """Return the version of a head that belongs to these weights; make it from kept photos if there is none.

        Raises:
            HeadBackboneChangedError: There is none, and not all photos were kept (409).
            DeadlineExceededError: The fit goes on, and the next request finds the version (504).
        """
        key = entry.name, entry.version, model.sha256
        if key not in self._tasks:
            while len(self._tasks) >= MAX_FOUND:
                self._tasks.pop(next(iter(self._tasks)))
            self._tasks[key] = task = asyncio.create_task(self._find(entry, model, choice))
            task.add_done_callback(lambda done: self._forget(key, done))
        try:
            async with asyncio.timeout(deadline.left_s()):
                return await asyncio.shield(self._tasks[key])
        except TimeoutError:
            raise deadline.exceeded() from None

    def _forget(self, key: Key, task: asyncio.Task[LoadedHead]) -> None:
        """Keep versions that were found, and the certainty that there is none; try again after other errors."""
        if task.cancelled() or not isinstance(task.exception(), HeadBackboneChangedError | None):
            self._tasks.pop(key, None)

    async def _find(self, entry: HeadEntry, model: ModelRef, choice: VariantChoice) -> LoadedHead:
        config, store, registry = self._access.heads
        await in_store(registry.refresh)  # another replica may have fitted it
        try:
            entry = registry.entry(entry.name)
        except UnknownHeadError:
            raise _changed(entry, model) from None
        for version in reversed(entry.versions):
            try:
                loaded = await in_store(store.load, entry.model_copy(update={"version": version}))
            except (UnknownHeadError, HeadDamagedError):
                continue
            if is_taught_with(loaded.head, model):
                return loaded
        stored = await in_store(store.read, entry.name)
        if not config.keep_photos or not all(example.kept_photo for example in stored.examples):
            raise _changed(entry, model)
        await self._refit(stored, choice)
        loaded = await asyncio.to_thread(registry.get, entry.name)
        if not is_taught_with(loaded.head, model):  # the weights were replaced again
            raise _changed(entry, model)
        return loaded

    async def _refit(self, stored: StoredHead, choice: VariantChoice) -> None:
        _, store, registry = self._access.heads
        entry, examples = stored.entry, stored.examples
        photos = [
            Photo(each.class_name, each.id, await in_store(store.photo, entry.name, each.id)) for each in examples
        ]
        with self._admission.admit(0, Deadline(REFIT_S)) as permit:
            views, model = await self._embedder.views(photos, choice, permit, f"refit-{uuid.uuid4().hex}")
        refitted = [
            replace(example, embedding=embedding, mirrored=mirrored)
            for example, (embedding, mirrored) in zip(examples, views, strict=True)
        ]
        fitted = await self._service.fit_head(refitted, model)
        try:
            await in_store(store.write, entry.name, fitted, refitted, owner=entry.owner, if_match=entry.etag)
        except PreconditionFailedError:  # another replica, or its owner, was faster
            pass
        else:
            log.info("head %s: fitted again for weights %s", shown_name(entry), model.version)
        await in_store(registry.refresh)


def _changed(entry: HeadEntry, model: ModelRef) -> HeadBackboneChangedError:
    return HeadBackboneChangedError(
        f"head {shown_name(entry)!r} was taught on weights {entry.backbone.version!r} ({entry.backbone.sha256:.8}), "
        f"and {model.version!r} ({model.sha256:.8}) serve now; teach it again with PUT /v1/heads/{shown_name(entry)}"
    )
