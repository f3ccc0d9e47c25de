"""Routes of /v1/heads/{name}/suggestions: photos that callers send to a head's owner, who approves or rejects them."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve_app.errors import HeadBackboneChangedError, InvalidParameterError, UnknownHeadError
from serve_app.heads.stored import HeadEntry
from serve_app.heads.suggestions import Suggestion
from serve_app.http.heads.edits import Edit, in_store, without_duplicates
from serve_app.http.heads.examples import PHOTO_RESPONSES, Thumbnail, photo_response
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
from serve_app.http.heads.schemas import (
    ApproveBody,
    HeadDocument,
    SuggestedPhoto,
    SuggestionList,
    SuggestionReceipt,
    suggested_photo,
)
from serve_app.http.heads.uploads import Photo, read_photos
from serve_app.http.preconditions import Preconditions
from serve_app.http.unknown_parameters import note_unknown_query
from serve_app.http.uploads import Parameters, read_json

DAY_S = 86400
SIMILAR = 3  # taught photos that are shown beside a suggestion


def create_router(heads: HeadRequests) -> APIRouter:
    """Build the routes."""
    router = APIRouter(prefix=f"{PATH}/{{name}}/suggestions", tags=["heads"], responses=problems(401, 404))
    service, access = heads.service, heads.access

    @router.post(
        "",
        status_code=202,
        response_model=SuggestionReceipt,
        openapi_extra={"requestBody": PHOTOS_BODY},
        responses=problems(*EDIT_ERRORS),
        summary="Suggest photos to the owner of a head",
    )
    async def suggest_photos(request: Request, name: str) -> Response:
        """Send photos as for PUT, under classes that the head has. They change it once its owner approves them."""
        note_unknown_query(request, ())
        config, store, _ = access.heads
        entry, caller = await heads.visible(request, name), request.state.caller
        stored, waiting = await in_store(store.read, entry.name), await in_store(store.suggestions, entry.name)
        sent = await read_photos(request, service.config.limits, config)
        _check_classes((photo.class_name for photo in sent), entry)
        known = [*stored.examples, *(each.example for each in waiting)]
        photos = without_duplicates(sent, known, request.state.warnings, "taught or suggested")
        ids: list[str] = []
        if photos:
            await in_store(store.check_room, entry.name, caller, len(photos), config)
            new = await heads.embed(request, photos, fits=False)
            assert new.backbone
            expires = int(time.time()) + config.keep_suggestions_days * DAY_S
            suggestions = [Suggestion(example, new.backbone, caller, expires) for example in new.examples]
            await in_store(store.suggest, entry.name, suggestions, new.photos, config)
            ids = [example.id for example in new.examples]
        return to_json(SuggestionReceipt(ids=ids, warnings=request.state.warnings or None), 202)

    @router.get(
        "",
        response_model=SuggestionList,
        responses=problems(*READ_ERRORS),
        summary="The suggestions that wait for the owner of a head",
    )
    async def list_suggestions(request: Request, name: str) -> Response:
        """The oldest first, each with what the head says about it now. Only the owner of a head gets them."""
        _, store, registry = access.heads
        entry = await heads.own(request, name)
        loaded = await asyncio.to_thread(registry.get, entry.name)
        use, parameters = heads.use(name, loaded, request.state.caller), Parameters(similar=SIMILAR)

        def describe(each: Suggestion) -> SuggestedPhoto:
            is_same = each.backbone.sha256 == loaded.head.backbone.sha256
            answer = use.answer(loaded, each.example.embedding, parameters, SIMILAR) if is_same else None
            return suggested_photo(entry, each, answer)

        waiting = await in_store(store.suggestions, entry.name)
        return to_json(SuggestionList(suggestions=[describe(each) for each in waiting]))

    @router.get(
        "/{suggestion}/photo",
        response_class=Response,
        responses=PHOTO_RESPONSES,
        summary="A suggested photo, where the service keeps photos",
    )
    async def get_suggested_photo(
        request: Request, name: str, suggestion: str, thumbnail: Thumbnail = False
    ) -> Response:
        """Only the owner of a head gets the photos that are suggested for it."""
        entry = await heads.own(request, name)
        photo = await in_store(access.heads.store.suggested_photo, entry.name, suggestion)
        return await photo_response(photo, thumbnail, service.config.limits.max_pixels)

    @router.post(
        "/approve",
        response_model=HeadDocument,
        openapi_extra=json_body(ApproveBody),
        responses=problems(*EDIT_ERRORS),
        summary="Make several suggestions examples, and fit once",
    )
    async def approve_suggestions(request: Request, name: str) -> Response:
        """If one of them cannot be approved, nothing changes."""
        body = await read_json(heads.limited(request), ApproveBody)
        return await approve(request, name, list(dict.fromkeys(body.ids)))

    @router.post(
        "/{suggestion}/approve",
        response_model=HeadDocument,
        responses=problems(*EDIT_ERRORS),
        summary="Make a suggestion an example, and fit again",
    )
    async def approve_suggestion(request: Request, name: str, suggestion: str) -> Response:
        """Only the owner of a head may approve."""
        return await approve(request, name, [suggestion])

    @router.delete(
        "/{suggestion}", status_code=204, responses=problems(*READ_ERRORS), summary="Reject or withdraw a suggestion"
    )
    async def reject_suggestion(request: Request, name: str, suggestion: str) -> Response:
        """Delete its embedding and photo. The head's owner may do that, and the API key that sent it."""
        store, caller = access.heads.store, request.state.caller
        entry = await heads.visible(request, name)
        waiting = {each.example.id: each for each in await in_store(store.suggestions, entry.name)}
        if suggestion not in waiting or caller not in (entry.owner, waiting[suggestion].caller):
            raise _unknown(suggestion)
        await in_store(store.drop_suggestions, entry.name, [suggestion])
        return Response(status_code=204)

    async def approve(request: Request, name: str, ids: Sequence[str]) -> Response:
        entry, conditions = await heads.own(request, name), Preconditions.of(request)
        conditions.check(entry.etag)
        store = access.heads.store
        waiting = {each.example.id: each for each in await in_store(store.suggestions, entry.name)}
        if missing := [id for id in ids if id not in waiting]:
            raise _unknown(missing[0])
        chosen = [waiting[id] for id in ids]
        _check_classes((each.example.class_name for each in chosen), entry)
        taught = {(each.class_name, each.photo_sha256) for each in (await in_store(store.read, entry.name)).examples}
        new = [each for each in chosen if (each.example.class_name, each.example.photo_sha256) not in taught]
        if len(new) < len(chosen):
            request.state.warnings.append(
                f"{len(chosen) - len(new)} of the photos were taught already and were ignored"
            )
        if new:
            entry = await heads.add(request, entry, await to_edit(request, entry, new), conditions)
        await in_store(store.drop_suggestions, entry.name, ids)
        return await heads.describe(request, entry)

    async def to_edit(request: Request, entry: HeadEntry, new: Sequence[Suggestion]) -> Edit:
        """Return suggestions as examples; if some are not of the head's weights, all are embedded again."""
        config, store, _ = access.heads
        has_others = any(each.backbone.sha256 != entry.backbone.sha256 for each in new)
        examples = [each.example for each in new]
        lost = [each.id for each in examples if not each.kept_photo]
        if has_others and lost:
            raise HeadBackboneChangedError(
                f"the suggestions have to be embedded again: not all were embedded by weights "
                f"{entry.backbone.version!r}, on which the head was taught; and the photo of suggestion {lost[0]} was "
                "not kept: reject it with DELETE, and ask for the photo again"
            )
        kept = [each.id for each in examples if each.kept_photo and (has_others or config.keep_photos)]
        photos = {id: await in_store(store.suggested_photo, entry.name, id) for id in kept}
        if has_others:
            return await heads.embed(request, [Photo(each.class_name, each.id, photos[each.id]) for each in examples])
        examples = [replace(each, kept_photo=each.id in photos) for each in examples]
        return Edit(examples, photos, backbone=entry.backbone)

    return router


def _check_classes(names: Iterable[str], entry: HeadEntry) -> None:
    """Raise InvalidParameterError (422) if the head lacks one of these classes."""
    for name in names:
        if name not in entry.labels:
            similar = difflib.get_close_matches(name, entry.labels, 3)
            hint = f"similar classes: {', '.join(similar)}" if similar else "GET the head to see its `labels`"
            raise InvalidParameterError(f"class {name!r}: the head has no such class; {hint}")


def _unknown(suggestion: str) -> UnknownHeadError:
    return UnknownHeadError(f"no suggestion {suggestion!r:.80} waits for the owner of this head")
