"""The folder of suggestions: photos that callers send under the class that is right, until the head's owner decides.

    suggestions/<head>/<expires>-<id>.safetensors   embeddings, the photo if it is kept; in the header all the rest

A file is written atomically and never changes. ``expires`` is in seconds since 1970: to count suggestions and to delete
old ones, no file is read.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from serve_app.errors import TooManySuggestionsError, UnknownHeadError
from serve_app.files import MAX_PARTIAL_AGE_S, atomic_write, create_folder, folder_bytes, fsync
from serve_app.heads.examples import Example
from serve_app.heads.stored import StoredExample, to_stored
from serve_app.heads.versions import delete_folder
from serve_app.heads_config import HeadsConfig
from serve_app.model_card import ModelRef
from serve_app.settings import FrozenModel

SUFFIX, RECORD, PHOTO = ".safetensors", "suggestion", "photo"
log = logging.getLogger("serve_app")


@dataclass(frozen=True, slots=True, eq=False)
class Suggestion:
    """An example that waits for the approval of the head's owner."""

    example: Example
    backbone: ModelRef  # the weights that made the embeddings
    caller: str | None  # name of the API key that sent it; None without keys
    expires: int  # seconds since 1970


class SuggestionRecord(FrozenModel):
    """A suggestion without its embeddings, as the header of its file holds it."""

    example: StoredExample
    backbone: ModelRef
    caller: str | None
    expires: int


class SuggestionFile(NamedTuple):
    """What the name of a file says."""

    path: Path
    id: str
    expires: int


class Suggestions:
    """The suggestions below one folder of heads. Callers hold the folder's lock, except to read."""

    def __init__(self, folder: Path) -> None:
        self._root, self._folder = folder, folder / "suggestions"

    def read(self, head: str) -> list[Suggestion]:
        """Return the waiting suggestions of a head, the oldest first; a damaged file is logged and left out."""
        found = [self._read(file.path) for file in self._waiting(head)]
        return sorted(filter(None, found), key=lambda each: (each.example.added, each.expires))

    def counts(self, heads: Collection[str] | None) -> Counter[str]:
        """Return the number of waiting suggestions by head, of some heads or of all."""
        return Counter(head for head in (_names(self._folder) if heads is None else heads) for _ in self._waiting(head))

    def photo(self, head: str, suggestion_id: str) -> bytes:
        """Return the kept photo of a suggestion.

        Raises:
            UnknownHeadError: There is no such suggestion, or its photo was not kept (404).
        """
        for file in self._waiting(head):
            if file.id == suggestion_id:
                with suppress(FileNotFoundError, SafetensorError), safe_open(file.path, "numpy") as tensors:
                    return bytes(tensors.get_tensor(PHOTO))
        raise UnknownHeadError(f"no kept photo of a suggestion {suggestion_id!r:.40}")

    def check_room(self, head: str, caller: str | None, new: int, config: HeadsConfig, new_bytes: int = 0) -> None:
        """Raise TooManySuggestionsError (409) if a head cannot take ``new`` suggestions of a caller."""
        waiting = self.read(head)
        of_caller = sum(each.caller == caller for each in waiting)
        used = folder_bytes(self._folder / head) + new_bytes
        if of_caller + new > config.max_suggestions_per_key:
            reason = (
                f"{of_caller} photos of yours wait (`heads.max_suggestions_per_key` = {config.max_suggestions_per_key})"
            )
        elif len(waiting) + new > config.max_suggestions:
            reason = f"{len(waiting)} photos wait (`heads.max_suggestions` = {config.max_suggestions})"
        elif used > config.max_suggestion_bytes:
            reason = f"they would have {used} bytes (`heads.max_suggestion_bytes` = {config.max_suggestion_bytes})"
        else:
            return
        raise TooManySuggestionsError(
            f"the head cannot take {new} more suggestions: {reason}; ask its owner to approve or reject some"
        )

    def write(self, head: str, suggestion: Suggestion, photo: bytes | None) -> None:
        """Store a suggestion, and its photo if it has one; both survive a power cut once this returns."""
        example = suggestion.example
        tensors = {name: getattr(example, name).astype(np.float16) for name in ("embedding", "mirrored")}
        if photo is not None:
            tensors[PHOTO] = np.frombuffer(photo, np.uint8)
        record = SuggestionRecord(
            example=to_stored(example),
            backbone=suggestion.backbone,
            caller=suggestion.caller,
            expires=suggestion.expires,
        )
        create_folder(self._folder / head)
        with atomic_write(self._folder / head / f"{suggestion.expires}-{example.id}{SUFFIX}") as path:
            path.write_bytes(save(tensors, {RECORD: record.model_dump_json()}))

    def delete(self, head: str, ids: Collection[str]) -> None:
        """Delete suggestions, on disk too; ids that do not wait are ignored."""
        for file in self._files(head):
            if file.id in ids:
                file.path.unlink()
        with suppress(FileNotFoundError):
            fsync(self._folder / head)

    def delete_all(self, head: str) -> None:
        """Delete all suggestions of a head. What cannot be deleted is logged; ``sweep`` tries again."""
        delete_folder(self._folder / head, self._root)

    def sweep(self, heads: Collection[str]) -> None:
        """Delete what has expired, what killed processes left, and the suggestions of heads that do not exist."""
        now = time.time()
        for head in _names(self._folder):
            if head not in heads:
                self.delete_all(head)
            for file in self._files(head):
                if file.expires <= now:
                    file.path.unlink(missing_ok=True)
            for path in (self._folder / head).glob(f".*{SUFFIX}.*"):
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < now - MAX_PARTIAL_AGE_S:
                        path.unlink()

    def _waiting(self, head: str) -> Iterator[SuggestionFile]:
        now = time.time()
        return (file for file in self._files(head) if file.expires > now)

    def _files(self, head: str) -> Iterator[SuggestionFile]:
        for name in _names(self._folder / head):
            expires, _, id = name.removesuffix(SUFFIX).partition("-")
            if expires.isdecimal():  # others are being written
                yield SuggestionFile(self._folder / head / name, id, int(expires))

    def _read(self, path: Path) -> Suggestion | None:
        try:
            with safe_open(path, "numpy") as file:
                record = SuggestionRecord.model_validate_json(file.metadata()[RECORD], extra="ignore")
                embedding, mirrored = (file.get_tensor(name).astype(np.float32) for name in ("embedding", "mirrored"))
        except FileNotFoundError:  # decided a moment ago
            return None
        except (SafetensorError, ValidationError, KeyError, TypeError) as error:
            log.error("%s is damaged, or a newer version of the service wrote it: %s", path, error)
            return None
        example = Example(embedding=embedding, mirrored=mirrored, **record.example.model_dump())
        return Suggestion(example, record.backbone, record.caller, record.expires)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
