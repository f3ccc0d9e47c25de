"""GET /v1/heads/{name}/export: a head and its backbone as one file.

A command of its own writes the file, in SCHED_IDLE: it needs torch, which the ingress does without, and its memory is
free again when it ends.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from serve_app.errors import HeadBackboneChangedError, InvalidParameterError, OverloadedError, ServiceError
from serve_app.heads.stored import HeadEntry
from serve_app.http.heads.access import shown_name
from serve_app.http.heads.edits import in_store
from serve_app.http.heads.requests import PATH, READ_ERRORS, HeadRequests, problems
from serve_app.scheduling import idle_python

Format = Literal["safetensors", "onnx"]
MEDIA_TYPES: dict[Format, str] = {"safetensors": "application/zip", "onnx": "application/octet-stream"}
SUFFIXES: dict[Format, str] = {"safetensors": "zip", "onnx": "onnx"}
MAX_EXPORT_S = 120
log = logging.getLogger("serve_app")


def create_router(heads: HeadRequests) -> APIRouter:
    """Build the route."""
    router = APIRouter(prefix=PATH, tags=["heads"], responses=problems(401, 404))
    exporting = asyncio.Lock()

    @router.get(
        "/{name}/export",
        response_class=Response,
        responses={200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}}, **problems(*READ_ERRORS, 422)},
        summary="Download a head with its backbone",
    )
    async def export_head(
        request: Request, name: str, format: Annotated[Format, Query(description="Format of the file.")] = "safetensors"
    ) -> Response:
        """`safetensors` is a zip of weights and card, for `serve-app run --weights`. `onnx` takes crops as `pixels`.

        The file is compared with the service's own scores before it is sent. Only the owner of a head may export it.
        """
        entry = await heads.own(request, name)
        if exporting.locked():
            raise OverloadedError("another export is in progress; retry later", 10)
        async with exporting:
            content = await _export(heads, entry, format)
        filename = f"{shown_name(entry)}.{SUFFIXES[format]}"
        headers = {"Content-Disposition": f'attachment; filename="{filename}"', "ETag": entry.etag}
        return Response(content, headers=headers, media_type=MEDIA_TYPES[format])

    return router


async def _export(heads: HeadRequests, entry: HeadEntry, format: Format) -> bytes:
    cards, wanted = heads.service.router.cards(), entry.backbone
    variant = next((name for name, card in cards.items() if card.sha256 == wanted.sha256), None)
    if variant is None:
        raise HeadBackboneChangedError(
            f"head {shown_name(entry)!r} was taught on weights {wanted.version!r}, which do not serve now; "
            "teach it again"
        )
    if format == "safetensors" and len(entry.labels) < 2:
        raise InvalidParameterError("format: a head of one class has no weights to run; export it as onnx")
    weights = (await heads.service.router.fetch_state(variant)).weights
    with TemporaryDirectory() as folder:
        version = await in_store(heads.access.heads.store.copy, entry, Path(folder, "head"))
        out = Path(folder, f"model.{SUFFIXES[format]}")
        arguments = ("--name", shown_name(entry), "--weights", weights.model_dump_json(), "--format", format)
        await _run(*idle_python(), "-m", "serve_app", "export", str(version), str(out), *arguments)
        return await asyncio.to_thread(out.read_bytes)


async def _run(*command: str) -> None:
    """Run a command; raise ServiceError (500) if it fails, or takes longer than MAX_EXPORT_S."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    try:
        async with asyncio.timeout(MAX_EXPORT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        raise ServiceError(f"the export took longer than {MAX_EXPORT_S} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        log.error("export: %s", output.decode(errors="replace"))
        raise ServiceError("the head could not be exported; the server's log has the reason")
