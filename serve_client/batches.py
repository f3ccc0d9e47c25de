"""Sends any number of images in requests that keep the service's limits, and yields results as they arrive."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from serve_client.errors import (
    NoResponseError,
    ProblemError,
    ServeError,
    TooLargeError,
    UnexpectedResponseError,
    UnreadableImageError,
)
from serve_client.images import ImageInput, name_of
from serve_client.lines import json_lines
from serve_client.parse import to_image_result
from serve_client.results import ImageResult, Limits
from serve_client.retries import Retries
from serve_client.session import Request, Session

JSON_LINES = "application/jsonl"
PART_HEADER_BYTES = 1024  # boundary and headers around each file of a form, at most; names are cut to fit
MAX_NAME_CHARS = 200
Images: TypeAlias = Iterable[ImageInput] | AsyncIterable[ImageInput]


@dataclass(frozen=True)
class Item:
    """One image on its way into a request; ``index`` is its place among those given."""

    index: int
    name: str | None
    data: bytes = field(repr=False)


class Batches:
    """Sends images with one set of parameters.

    Args:
        session: Sends the requests.
        limits: Of one request.
        request: What the requests have in common: path, query and headers.
        timeout_s: Time for one request, with its repetitions.
    """

    def __init__(
        self,
        session: Session,
        limits: Limits,
        request: Request,
        timeout_s: float | None,
    ) -> None:
        self._session, self._limits, self._timeout_s = session, limits, timeout_s
        headers = {**request.options["headers"], "Accept": JSON_LINES}
        self._request = replace(request, options={**request.options, "headers": headers})

    async def results(self, images: Images) -> AsyncGenerator[ImageResult, None]:
        """Yield one result per image, when it is ready; images are read when their request is sent."""
        async with aclosing(self._batches(images)) as batches:
            async for batch in batches:
                if isinstance(batch, ImageResult):
                    yield batch
                    continue
                async with aclosing(self._send(batch)) as results:
                    async for result in results:
                        yield result

    async def _batches(self, images: Images) -> AsyncGenerator[list[Item] | ImageResult, None]:
        """Yield what fits into one request each, and the result of each image that cannot be read."""
        batch: list[Item] = []
        size = index = 0
        async with aclosing(_each(images)) as each:
            async for image in each:
                try:
                    encoded = await self._session.encode(image, self._timeout_s)
                except UnreadableImageError as error:
                    yield ImageResult(index, name_of(image), error=error)
                else:
                    added = len(encoded.data) + PART_HEADER_BYTES
                    if batch and (len(batch) == self._limits.max_images or size + added > self._limits.max_body_bytes):
                        yield batch
                        batch, size = [], 0
                    batch.append(Item(index, encoded.name, encoded.data))
                    size += added
                index += 1
        if batch:
            yield batch

    async def _send(self, batch: list[Item]) -> AsyncGenerator[ImageResult, None]:
        """Yield the results of one request. Images that the service refuses for a while are sent again."""
        waiting = {item.index: item for item in batch}
        retries = self._session.retries(self._timeout_s)
        while waiting:
            refused: dict[int, ImageResult] = {}
            failure: ServeError | None = None
            try:
                async with aclosing(self._results(list(waiting.values()), retries)) as results:
                    async for result in results:
                        if result.error and retries.is_passing(result.error):
                            refused[result.index] = result
                        else:
                            del waiting[result.index]
                            yield result
            except TooLargeError as error:
                if len(waiting) > 1:
                    raise
                for item in waiting.values():
                    yield ImageResult(item.index, item.name, error=error)
                return
            except NoResponseError as error:
                failure = error
            if not waiting:
                return
            if len(refused) < len(waiting):
                failure = failure or UnexpectedResponseError("the response lacks the results of images")
            try:
                pause_s = retries.pause_s(failure or _longest_wait(refused))
            except ProblemError:
                for result in refused.values():
                    yield result
                return
            await self._session.transport.sleep(pause_s)

    async def _results(self, sent: list[Item], retries: Retries) -> AsyncGenerator[ImageResult, None]:
        """Yield the lines of one response as results of the images that were sent."""
        response_headers: dict[str, str] = {}
        files = [("images", ((item.name or str(item.index))[-MAX_NAME_CHARS:], item.data)) for item in sent]
        request = replace(self._request, options={**self._request.options, "files": files})
        pieces = self._session.pieces(request, retries, response_headers.update)
        async with aclosing(json_lines(pieces)) as lines:
            async for line in lines:
                if "index" in line:  # the last line is the summary
                    item = sent[line["index"]]
                    yield replace(to_image_result(line, response_headers), index=item.index, name=item.name)


async def in_order(results: AsyncGenerator[ImageResult, None]) -> AsyncGenerator[ImageResult, None]:
    """Yield results by index, from 0; a result waits until all before it have come."""
    early: dict[int, ImageResult] = {}
    index = 0
    async with aclosing(results):
        async for result in results:
            early[result.index] = result
            while index in early:
                yield early.pop(index)
                index += 1


async def _each(images: Images) -> AsyncGenerator[ImageInput, None]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


def _longest_wait(refused: Mapping[int, ImageResult]) -> ServeError:
    """Return the error that asks for the longest wait."""
    errors = [result.error for result in refused.values() if result.error]
    return max(errors, key=lambda error: error.retry_after or 0 if isinstance(error, ProblemError) else 0)
