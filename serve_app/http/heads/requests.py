"""What the routes of heads share: look up, embed, edit, describe."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from serve_app.deadline import Deadline
from serve_app.errors import HeadBackboneChangedError, HeadNameTakenError, ServiceError
from serve_app.heads.examples import Example
from serve_app.heads.stored import HeadEntry, LoadedHead
from serve_app.http.form_body import FORM
from serve_app.http.heads.access import HeadAccess, shown_name
from serve_app.http.heads.edits import Edit, HeadEditor, in_store
from serve_app.http.heads.photos import PhotoEmbedder, new_examples
from serve_app.http.heads.schemas import document
from serve_app.http.heads.uploads import Photo
from serve_app.http.heads.use import HeadUse, OtherWeights
from serve_app.http.limited_request import LimitedRequest
from serve_app.http.openapi import PROBLEMS
from serve_app.http.preconditions import Preconditions
from serve_app.http.service import Service
from serve_app.http.uploads import body_schema

PATH = "/v1/heads"
FORM_TEXT = "A field per class; repeat it for each photo."
PHOTO = {"type": "string", "format": "binary"}
PHOTOS_BODY = {
    "required": True,
    "content": {
        FORM: {"schema": {"type": "object", "description": FORM_TEXT, "additionalProperties": PHOTO}},
        "application/zip": {"schema": {"type": "string", "format": "binary"}},
    },
}
READ_ERRORS, EDIT_ERRORS = (409, 503), (400, 408, 409, 412, 413, 415, 422, 429, 503, 504)


class HeadRequests:
    """Handles what is common to requests about heads, for one ingress replica."""

    def __init__(
        self, service: Service, access: HeadAccess, embedder: PhotoEmbedder, other_weights: OtherWeights
    ) -> None:
        self.service, self.access = service, access
        self._embedder, self._other_weights = embedder, other_weights

    @property
    def served(self) -> set[str]:
        """SHA-256 of the weights that serve."""
        return {card.sha256 for card in self.service.router.cards().values()}

    async def own(self, request: Request, name: str) -> HeadEntry:
        """Return a head of the caller as it is on the disk now, or raise UnknownHeadError (404)."""
        await self.refresh()
        return self.access.own(name, request.state.caller)

    async def visible(self, request: Request, name: str) -> HeadEntry:
        """Return a head that the caller may read as it is on the disk now, or raise UnknownHeadError (404)."""
        await self.refresh()
        return self.access.visible(name, request.state.caller)

    async def refresh(self) -> None:
        """Look at the disk: another replica may have written a moment ago."""
        await in_store(self.access.heads.registry.refresh)

    def check_public(self, name: str, caller: str | None) -> None:
        """Raise HeadNameTakenError (409) if a public head of another API key has this name."""
        if name in (shown_name(each) for each in self.access.all_visible(caller) if each.owner != caller):
            raise HeadNameTakenError(
                f"head {name!r}: a public head of another API key has this name; choose another one"
            )

    def use(self, name: str, loaded: LoadedHead, caller: str | None) -> HeadUse:
        """Return the use of one head by a caller."""
        return HeadUse({name: loaded}, caller, self.access.heads.config.keep_photos, self._other_weights)

    async def embed(self, request: Request, photos: Sequence[Photo], *, fits: bool = True) -> Edit:
        """Return photos as examples; they pass the same stages as images to classify. ``fits``: a fit will follow."""
        keep = self.access.heads.config.keep_photos
        choice = self.service.router.choose(request.headers.get("x-model"))
        preparing = asyncio.create_task(self._prepare_fit()) if fits else None
        try:
            views, model = await self._embedder.views(photos, choice, request.state.permit, request.state.id)
        finally:
            if preparing:
                preparing.cancel()
        examples = new_examples(photos, views, keep_photos=keep)
        files = {each.id: photo.encoded for each, photo in zip(examples, photos, strict=True)} if keep else {}
        return Edit(examples, files, backbone=model)

    async def _prepare_fit(self) -> None:
        with suppress(ServiceError):  # the fit itself will report it
            await self.service.prepare_fit()

    def editor(self, request: Request) -> HeadEditor:
        """Return the editor of the caller's heads, under the request's deadline."""
        permit = getattr(request.state, "permit", None)  # a DELETE without a body has none
        deadline = permit.deadline if permit else Deadline(self.service.config.limits.deadline_s)
        return HeadEditor(self.service, self.access.heads, request.state.caller, deadline)

    async def add(self, request: Request, entry: HeadEntry, new: Edit, conditions: Preconditions) -> HeadEntry:
        """Add new examples to those of a head; if its weights were replaced, it is fitted from its photos first.

        Raises:
            HeadBackboneChangedError: The weights were replaced, and not all photos were kept (409).
            ServiceError: See HeadEditor.change.
        """

        def add(known: Sequence[Example]) -> Edit:
            ids = {each.id for each in known}  # an approval that is sent twice adds its example once
            return replace(new, examples=(*known, *(each for each in new.examples if each.id not in ids)))

        editor, deadline = self.editor(request), request.state.permit.deadline
        try:
            return await editor.change(entry.name, add, conditions)
        except HeadBackboneChangedError:
            assert new.backbone
            await self._other_weights.version_for(entry, new.backbone, self.service.router.choose(), deadline)
            return await editor.change(entry.name, add, Preconditions())

    def limited(self, request: Request) -> LimitedRequest:
        """Return the request with a bounded body."""
        return LimitedRequest(request.scope, request.receive, self.service.config.limits.max_body_bytes)

    async def describe(self, request: Request, entry: HeadEntry, status: int = 200) -> Response:
        """Answer with a head as it is on the disk now."""
        config, store, _ = self.access.heads
        stored = await in_store(store.read, entry.name)
        waiting = (await in_store(store.suggestion_counts, [entry.name]))[entry.name]
        body = document(stored, request.state.caller, self.served, waiting, config.keep_photos, request.state.warnings)
        headers = {"ETag": stored.entry.etag, "Location": f"{PATH}/{shown_name(stored.entry)}"}
        return to_json(body, status, headers)


def to_json(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a model as a response."""
    return Response(body.model_dump_json(), status, headers, "application/json")


def json_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Return the OpenAPI description of a JSON body."""
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": body_schema(model)}}}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route."""
    return {status: PROBLEMS[status] for status in statuses}
