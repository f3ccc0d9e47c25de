"""Routes of /v1/heads: teach classes from photos, read what the fit says, share, roll back, delete."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from serve_app.errors import HeadBackboneChangedError, UnknownHeadError
from serve_app.heads.names import check_head_name
from serve_app.heads.store import HeadStore
from serve_app.http.heads.access import check_free, stored_name
from serve_app.http.heads.edits import check_size, in_store, without_duplicates
from serve_app.http.heads.requests import (
    EDIT_ERRORS,
    PATH,
    PHOTOS_BODY,
    READ_ERRORS,
    HeadRequests,
    json_body,
    problems,
    to_json,
)
from serve_app.http.heads.schemas import HeadDocument, HeadList, RollbackBody, ShareBody, summary
from serve_app.http.heads.uploads import read_photos
from serve_app.http.preconditions import Preconditions
from serve_app.http.unknown_parameters import note_unknown_query
from serve_app.http.uploads import RequestModel, read_json

LIMITS = (
    *("max_heads", "max_classes", "max_photos_per_class", "max_photos", "max_photos_per_request", "max_bytes"),
    *("max_suggestions", "max_suggestions_per_key", "max_suggestion_bytes"),
)


class TeachParameters(RequestModel):
    """The query of PUT."""

    public: bool | None = Field(None, description="Whether other API keys may use the head; unchanged if left out.")


def create_router(heads: HeadRequests) -> APIRouter:
    """Build the routes; without the setting ``heads`` each answers 404."""
    router = APIRouter(prefix=PATH, tags=["heads"], responses=problems(401, 404))
    service, access = heads.service, heads.access

    def store() -> HeadStore:
        return access.heads.store

    @router.get("", response_model=HeadList, responses=problems(*READ_ERRORS), summary="The heads that you may use")
    async def list_heads(request: Request) -> Response:
        """Your heads and the public ones of other API keys, and the limits of a new one."""
        config = access.heads.config
        await heads.refresh()
        waiting = await in_store(store().suggestion_counts)
        caller, limits = request.state.caller, service.config.limits
        return to_json(
            HeadList(
                heads=[
                    summary(entry, caller, heads.served, waiting[entry.name]) for entry in access.all_visible(caller)
                ],
                backbone=service.router.first_card().ref,
                keep_photos=config.keep_photos,
                limits={name: getattr(config, name) for name in LIMITS}
                | {"max_body_bytes": limits.max_body_bytes, "max_image_bytes": limits.max_image_bytes},
            )
        )

    @router.put(
        "/{name}",
        response_model=HeadDocument,
        openapi_extra={"requestBody": PHOTOS_BODY},
        responses={**problems(*EDIT_ERRORS), 201: {"model": HeadDocument, "description": "The head is new"}},
        summary="Teach a head from photos by class; replaces all its photos",
    )
    async def teach_head(request: Request, name: str, parameters: Annotated[TeachParameters, Query()]) -> Response:
        """Send a form whose fields are classes and whose files are photos, or a zip with a folder per class.

        A photo that cannot be read fails the request, and nothing is stored. `If-Match` and `If-None-Match: *` keep
        two people from overwriting each other.
        """
        note_unknown_query(request, TeachParameters.model_fields)
        config = access.heads.config
        caller, conditions = request.state.caller, Preconditions.of(request)
        key, editor = stored_name(check_head_name(name), caller), heads.editor(request)
        check_free(name, service.config, [card.name for card in service.router.cards().values()])
        before = await editor.find(key)
        conditions.check(before.etag if before else None)
        if parameters.public:
            await heads.refresh()
            heads.check_public(name, caller)
        sent = await read_photos(request, service.config.limits, config)
        photos = without_duplicates(sent, (), request.state.warnings)
        check_size(Counter(photo.class_name for photo in photos), config)
        entry, is_new = await editor.replace(key, await heads.embed(request, photos), parameters.public, conditions)
        return await heads.describe(request, entry, 201 if is_new else 200)

    @router.get(
        "/{name}",
        response_model=HeadDocument,
        responses={**problems(*READ_ERRORS), 304: {"description": "Not changed"}},
        summary="One head: its photos and the report of its fit",
    )
    async def get_head(request: Request, name: str) -> Response:
        """`If-None-Match` with the head's ETag answers 304 if nothing has changed but the number of suggestions."""
        entry = await heads.visible(request, name)
        if Preconditions.of(request).is_cached(entry.etag):
            return Response(status_code=304, headers={"ETag": entry.etag})
        return await heads.describe(request, entry)

    @router.patch(
        "/{name}",
        response_model=HeadDocument,
        openapi_extra=json_body(ShareBody),
        responses=problems(*EDIT_ERRORS),
        summary="Let other API keys use a head, or no longer",
    )
    async def share_head(request: Request, name: str) -> Response:
        """Other API keys may classify with a public head and read its report, and change nothing."""
        body = await read_json(heads.limited(request), ShareBody)
        entry, conditions = await heads.own(request, name), Preconditions.of(request)
        conditions.check(entry.etag)
        if body.public:
            heads.check_public(name, request.state.caller)
        etag = entry.etag if conditions.match else None
        await in_store(store().set_public, entry.name, body.public, owner=request.state.caller, if_match=etag)
        await heads.refresh()
        return await heads.describe(request, entry)

    @router.delete("/{name}", status_code=204, responses=problems(*EDIT_ERRORS), summary="Delete a head")
    async def delete_head(request: Request, name: str) -> Response:
        """Delete all versions of a head with their embeddings and photos, and its suggestions."""
        entry, conditions = await heads.own(request, name), Preconditions.of(request)
        conditions.check(entry.etag)
        etag = entry.etag if conditions.match else None
        await in_store(store().delete, entry.name, owner=request.state.caller, if_match=etag)
        await heads.refresh()
        return Response(status_code=204)

    @router.post(
        "/{name}/rollback",
        response_model=HeadDocument,
        openapi_extra=json_body(RollbackBody, required=False),
        responses=problems(*EDIT_ERRORS),
        summary="Serve an earlier version of a head",
    )
    async def roll_back_head(request: Request, name: str) -> Response:
        """The version before, or the one that the body names; it has to belong to the weights that serve."""
        limited = heads.limited(request)
        body = await read_json(limited, RollbackBody) if await limited.body() else RollbackBody()
        entry = await heads.own(request, name)
        Preconditions.of(request).check(entry.etag)
        earlier = [version for version in entry.versions if version < entry.version]
        target = body.version or (earlier[-1] if earlier else None)
        if target is None:
            raise UnknownHeadError(f"head {name!r} has no version before {entry.version}")
        backbone = (await in_store(store().read, entry.name, target)).head.backbone
        if backbone.sha256 not in heads.served:
            raise HeadBackboneChangedError(
                f"version {target!r} was taught on weights {backbone.version!r}, which do not serve now"
            )
        await in_store(store().rollback, entry.name, target, owner=request.state.caller, if_match=entry.etag)
        await heads.refresh()
        return await heads.describe(request, entry)

    return router
