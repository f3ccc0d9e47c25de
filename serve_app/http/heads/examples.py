"""Routes of /v1/heads/{name}/examples: add, move and delete taught photos; each fits the head again."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from serve_app.errors import UnknownHeadError
from serve_app.heads.examples import Example
from serve_app.heads.names import clean_class_name
from serve_app.http.heads.edits import Edit, check_size, in_store, without_duplicates
from serve_app.http.heads.requests import EDIT_ERRORS, PATH, PHOTOS_BODY, READ_ERRORS, HeadRequests, json_body, problems
from serve_app.http.heads.schemas import HeadDocument, RelabelBody
from serve_app.http.heads.uploads import read_photos
from serve_app.http.openapi import IMAGE_BODY
from serve_app.http.preconditions import Preconditions
from serve_app.http.unknown_parameters import note_unknown_query
from serve_app.http.uploads import read_json
from serve_app.preprocessing.thumbnail import make_thumbnail

THUMBNAIL_PX = 320  # longest side
CACHE = {"Cache-Control": "private, max-age=86400, immutable"}  # an id never names another photo
PHOTO_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": IMAGE_BODY, "image/jpeg": IMAGE_BODY}},
    **problems(*READ_ERRORS),
}
Thumbnail = Annotated[bool, Query(description=f"A JPEG of at most {THUMBNAIL_PX} px instead.")]


def create_router(heads: HeadRequests) -> APIRouter:
    """Build the routes."""
    router = APIRouter(prefix=f"{PATH}/{{name}}/examples", tags=["heads"], responses=problems(401, 404))
    service, access = heads.service, heads.access

    @router.post(
        "",
        response_model=HeadDocument,
        openapi_extra={"requestBody": PHOTOS_BODY},
        responses=problems(*EDIT_ERRORS),
        summary="Add photos to a head, and fit it again",
    )
    async def add_examples(request: Request, name: str) -> Response:
        """Send photos as for PUT; photos that their class has already are ignored and named in `warnings`."""
        note_unknown_query(request, ())
        config, store, _ = access.heads
        entry, conditions = await heads.own(request, name), Preconditions.of(request)
        conditions.check(entry.etag)
        stored = await in_store(store.read, entry.name)
        sent = await read_photos(request, service.config.limits, config)
        photos = without_duplicates(sent, stored.examples, request.state.warnings)
        if not photos:
            return await heads.describe(request, entry)
        classes = [each.class_name for each in stored.examples] + [photo.class_name for photo in photos]
        check_size(Counter(classes), config)
        new = await heads.embed(request, photos)

        return await heads.describe(request, await heads.add(request, entry, new, conditions))

    @router.patch(
        "/{example}",
        response_model=HeadDocument,
        openapi_extra=json_body(RelabelBody),
        responses=problems(*EDIT_ERRORS),
        summary="Move a photo to another class, and fit again",
    )
    async def relabel_example(request: Request, name: str, example: str) -> Response:
        """The class may be a new one."""
        class_name = clean_class_name((await read_json(heads.limited(request), RelabelBody)).class_name)
        entry = await heads.own(request, name)

        def relabel(known: Sequence[Example]) -> Edit:
            _check_known(example, known)
            return Edit([replace(each, class_name=class_name) if each.id == example else each for each in known])

        editor = heads.editor(request)
        return await heads.describe(request, await editor.change(entry.name, relabel, Preconditions.of(request)))

    @router.delete(
        "/{example}",
        response_model=HeadDocument,
        responses=problems(*EDIT_ERRORS),
        summary="Delete a photo from a head, and fit again",
    )
    async def delete_example(request: Request, name: str, example: str) -> Response:
        """Its embedding leaves all versions: those that hold it are deleted."""
        entry = await heads.own(request, name)

        def remove(known: Sequence[Example]) -> Edit:
            _check_known(example, known)
            return Edit([each for each in known if each.id != example], forget=(example,))

        editor = heads.editor(request)
        return await heads.describe(request, await editor.change(entry.name, remove, Preconditions.of(request)))

    @router.get(
        "/{example}/photo",
        response_class=Response,
        responses=PHOTO_RESPONSES,
        summary="A taught photo, where the service keeps photos",
    )
    async def get_example_photo(request: Request, name: str, example: str, thumbnail: Thumbnail = False) -> Response:
        """Only the owner of a head gets its photos."""
        entry = await heads.own(request, name)
        photo = await in_store(access.heads.store.photo, entry.name, example)
        return await photo_response(photo, thumbnail, service.config.limits.max_pixels)

    return router


async def photo_response(photo: bytes, thumbnail: bool, max_pixels: int) -> Response:
    """Answer with a kept photo as it was sent, or with its thumbnail."""
    if thumbnail:
        photo = await asyncio.to_thread(_thumbnail, photo, max_pixels)
    return Response(photo, headers=CACHE, media_type="image/jpeg" if thumbnail else "application/octet-stream")


def _thumbnail(photo: bytes, max_pixels: int) -> bytes:
    buffer = io.BytesIO()
    make_thumbnail(photo, max_pixels, THUMBNAIL_PX).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _check_known(example: str, known: Sequence[Example]) -> None:
    if all(each.id != example for each in known):
        raise UnknownHeadError(f"the head has no example {example!r:.80}; GET the head to see them")
