"""Heads, the classes that you teach: teach, look at, change, export."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import quote

from serve_client.from_json import from_json
from serve_client.head_results import Head, SuggestedPhoto, SuggestionReceipt
from serve_client.images import ImageInput
from serve_client.session import Reply, Request, Session

PATH = "/v1/heads"
TEACH_TIMEOUT_S = 300.0  # a request of 256 photos embeds 512 images, and shares the CPUs with requests to classify
Format = Literal["safetensors", "onnx"]


class HeadOperations:
    """The heads that one caller may use. A head is named by its name or its state.

    A change that gets a head's state is refused with ``PreconditionFailedError`` if somebody else has changed the head
    since; with a name it is carried out all the same.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def list(self) -> tuple[Head, ...]:
        """Return the caller's heads and public ones, without their examples and reports."""
        reply = await self._session.send(Request("GET", PATH))
        return tuple(from_json(Head, each) for each in reply.member("heads"))

    async def get(self, head: Head | str) -> Head:
        """Return a head: its photos and the report of its fit."""
        return _head(await self._session.send(Request("GET", _path(head))))

    async def teach(
        self,
        head: Head | str,
        photos: Mapping[str, Iterable[ImageInput]],
        *,
        public: bool | None = None,
        timeout: float = TEACH_TIMEOUT_S,
    ) -> Head:
        """Teach a head from photos alone; a head of that name loses the photos that it has.

        Args:
            head: A name, or the state of the head that is replaced.
            photos: Photos by class, each as of ``classify``.
            public: Whether other API keys may use the head; by default as before.
            timeout: Time for the call with its repetitions.

        Raises:
            UnreadableImageError: A photo cannot be read; nothing was sent.
            ProblemError: Nothing was stored: a photo was refused, such as with ``InvalidImageError``, or a limit.
        """
        params = {} if public is None else {"public": str(public).lower()}
        return _head(await self._send_photos("PUT", _path(head), head, photos, params, timeout))

    async def add(
        self, head: Head | str, photos: Mapping[str, Iterable[ImageInput]], *, timeout: float = TEACH_TIMEOUT_S
    ) -> Head:
        """Add photos by class; a class may be new, and photos that their class has already are ignored.

        The arguments and errors are those of ``teach``.
        """
        return _head(await self._send_photos("POST", f"{_path(head)}/examples", head, photos, {}, timeout))

    async def move(self, head: Head | str, example: str, class_name: str) -> Head:
        """Move a photo to another class, and fit again; ``example`` is the id of one of ``Head.examples``."""
        return await self._change("PATCH", _example(head, example), head, json={"class": class_name})

    async def remove(self, head: Head | str, example: str) -> Head:
        """Delete a photo and its embedding, and fit again; ``example`` is the id of one of ``Head.examples``."""
        return await self._change("DELETE", _example(head, example), head)

    async def suggest(
        self, head: Head | str, photos: Mapping[str, Iterable[ImageInput]], *, timeout: float = TEACH_TIMEOUT_S
    ) -> SuggestionReceipt:
        """Suggest photos by class to the owner of a head; they change the head once the owner approves them.

        Args:
            head: A head that the caller may use.
            photos: Photos by the class that is right, one of the head's; each as of ``classify``.
            timeout: Time for the call with its repetitions.

        Raises:
            TooManySuggestionsError: As many wait as may.
            UnreadableImageError: A photo cannot be read; nothing was sent.
            ProblemError: Nothing was stored: a photo or a class was refused.
        """
        name = head if isinstance(head, str) else head.name
        reply = await self._send_photos("POST", _suggestions(head), name, photos, {}, timeout)
        return from_json(SuggestionReceipt, reply.json())

    async def suggestions(self, head: Head | str) -> tuple[SuggestedPhoto, ...]:
        """Return what waits for the approval of the caller, who owns the head; the oldest first."""
        reply = await self._session.send(Request("GET", _suggestions(head)))
        return tuple(from_json(SuggestedPhoto, each) for each in reply.member("suggestions"))

    async def approve(self, head: Head | str, *suggestions: str) -> Head:
        """Make suggestions, by their ids, examples of the caller's head, and fit it once.

        Raises:
            HeadBackboneChangedError: Other weights made an embedding, and its photo was not kept; nothing changed.
            ProblemError: Nothing changed: a suggestion does not wait any more, or a limit.
        """
        return await self._change("POST", f"{_suggestions(head)}/approve", head, json={"ids": suggestions})

    async def reject(self, head: Head | str, suggestion: str) -> None:
        """Delete a suggestion; the head's owner may do that, and the API key that sent it."""
        await self._session.send(Request("DELETE", f"{_suggestions(head)}/{quote(suggestion, safe='')}"))

    async def share(self, head: Head | str, public: bool) -> Head:
        """Let other API keys use a head, or no longer."""
        return await self._change("PATCH", _path(head), head, json={"public": public})

    async def roll_back(self, head: Head | str, version: str | None = None) -> Head:
        """Make an earlier version the one that serves, by default the one before; see ``Head.versions``."""
        edit = _edit("POST", f"{_path(head)}/rollback", head, json={"version": version})
        repeatable = edit.repeatable and version is not None  # a repetition would go one version further back
        return _head(await self._session.send(replace(edit, repeatable=repeatable), TEACH_TIMEOUT_S))

    async def delete(self, head: Head | str) -> None:
        """Delete a head with all its versions, embeddings and photos."""
        await self._session.send(_edit("DELETE", _path(head), head))

    async def export(
        self,
        head: Head | str,
        to: str | os.PathLike[str],
        *,
        format: Format = "safetensors",
        timeout: float = TEACH_TIMEOUT_S,
    ) -> None:
        """Write a head with its backbone to a file.

        Args:
            head: The head.
            to: Path of the file.
            format: ``safetensors``, a zip of weights and card for ``serve-app run --weights``; or ``onnx``.
            timeout: Time for the call with its repetitions.
        """
        request = Request("GET", f"{_path(head)}/export", {"params": {"format": format}})
        content = (await self._session.send(request, timeout)).body

        def write() -> None:
            with open(to, "wb") as file:
                file.write(content)

        await self._session.transport.call(write)

    async def _send_photos(
        self,
        method: str,
        path: str,
        head: Head | str,
        photos: Mapping[str, Iterable[ImageInput]],
        params: dict[str, str],
        timeout: float,
    ) -> Reply:
        files = []
        for class_name, group in photos.items():
            for number, photo in enumerate(group, 1):
                encoded = await self._session.encode(photo, timeout)
                files.append((class_name, (encoded.name or str(number), encoded.data)))
        return await self._session.send(_edit(method, path, head, files=files, params=params), timeout)

    async def _change(self, method: str, path: str, head: Head | str, **body: Any) -> Head:
        return _head(await self._session.send(_edit(method, path, head, **body), TEACH_TIMEOUT_S))


def _head(reply: Reply) -> Head:
    return from_json(Head, reply.json())


def _edit(method: str, path: str, head: Head | str, **options: Any) -> Request:
    """Return a request that changes a head; one with a state is not repeated, which would be refused."""
    conditions = {} if isinstance(head, str) else {"If-Match": head.etag}
    return Request(method, path, {"headers": conditions, **options}, repeatable=not conditions)


def _path(head: Head | str) -> str:
    return f"{PATH}/{quote(head if isinstance(head, str) else head.name, safe='')}"


def _suggestions(head: Head | str) -> str:
    return f"{_path(head)}/suggestions"


def _example(head: Head | str, example: str) -> str:
    return f"{_path(head)}/examples/{quote(example, safe='')}"
