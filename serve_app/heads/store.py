"""The folder of heads. Each version is immutable; one small file per head names the version that serves.

    pointers/<name>.json                         which version serves, owner, ETag; replaced atomically
    versions/<name>/<version>/head.safetensors   weights and embeddings
    versions/<name>/<version>/head.json          labels, card, report, examples
    versions/<name>/<version>/photos/<id>        uploaded files, if they are kept
    quarantine/<name>/<version>/                 a damaged version, for the operator
    suggestions/<name>/                          examples that wait for the owner's approval; see suggestions.py
    .draft-<hex>/  .deleted-<hex>/               a version that is being written, a folder that is being deleted
    .lock                                        held while a version is published or deleted

Readers need no lock: a pointer names only versions that are on disk as a whole. What no pointer names is left from a
process that was killed; ``sweep`` deletes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from serve_app.errors import (
    HeadDamagedError,
    HeadNameTakenError,
    PreconditionFailedError,
    TooManyHeadsError,
    UnknownHeadError,
)
from serve_app.files import CorruptFileError, create_folder
from serve_app.heads.examples import Example
from serve_app.heads.fit import Fitted
from serve_app.heads.pointers import unknown
from serve_app.heads.reader import HeadReader, moved
from serve_app.heads.stored import HeadEntry, encode_tensors, make_entry, make_record, version_name, version_number
from serve_app.heads.suggestions import Suggestion
from serve_app.heads_config import HeadsConfig


class HeadStore(HeadReader):
    """Reads and writes the heads of one folder; many processes on many nodes may share it.

    Every method raises OSError if the folder cannot be read or written. Methods that change a head take its
    ``owner``, the name of the API key, and ``if_match``, the ETag of the state that the caller saw (If-Match; None
    changes any state), and raise:

    - UnknownHeadError: There is no head of that name (404).
    - HeadNameTakenError: It belongs to another owner (409).
    - PreconditionFailedError: Its ETag is another one by now (412).
    - NotReadyError: Other writers hold the folder's lock for too long (503).

    Args:
        folder: A folder on a disk, or on a shared file system with locks (NFS v4, EFS).
        keep_versions: Number of earlier versions of a head that are kept for ``rollback``.
    """

    def __init__(self, folder: Path, keep_versions: int = 3) -> None:
        super().__init__(folder)
        self.keep_versions = keep_versions

    def write(
        self,
        name: str,
        fitted: Fitted,
        examples: Sequence[Example],
        *,
        owner: str | None,
        public: bool | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
        photos: Mapping[str, bytes] | None = None,
        forget: Collection[str] = (),
        max_heads: int | None = None,
    ) -> HeadEntry:
        """Store a new version and make it the one that serves; it survives a power cut once this returns.

        Args:
            name: As ``check_head_name`` returns it.
            fitted: The head and its report.
            examples: Those that the head was fitted on.
            owner: See the class.
            public: Whether other keys may use it; None leaves it as it is, which is False for a new head.
            if_match: See the class; a head that does not exist matches none.
            if_absent: Only a head that does not exist yet is written (If-None-Match: *).
            photos: New uploaded files by example id. Kept photos of the version before stay with their examples.
            forget: Ids of examples of which no earlier version may keep the embedding or the photo.
            max_heads: Number of heads that one owner may have.

        Raises:
            PreconditionFailedError: See the class; or the head exists (412).
            TooManyHeadsError: The owner has ``max_heads`` heads (409).
        """
        create_folder(self.folder)
        tensors = encode_tensors(fitted.head, examples)
        with self._versions.draft(tensors, photos or {}) as draft, self._locked():
            current = self._find(name)
            self._check(name, current, owner, if_match)
            if current and if_absent:
                raise PreconditionFailedError(f"head {name!r} exists already")
            if current is None and max_heads is not None:
                self._check_number(owner, max_heads)
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            record = make_record(
                fitted, examples, tensors, owner=owner, created=current.created if current else now, updated=now
            )
            content = record.model_dump_json(indent=1).encode()
            number = 1 + max(map(version_number, self._versions.names(name)), default=0)
            version = version_name(number, content)
            self._versions.publish(draft, content, record, name, version, current.version if current else None)
            before = [kept for kept in current.versions if kept <= current.version] if current else []
            kept = self._versions.without(name, before[max(0, len(before) - self.keep_versions) :], forget)
            return self._point(
                make_entry(
                    name,
                    version,
                    (*kept, version),
                    record,
                    revision=current.revision + 1 if current else 1,
                    public=public if public is not None else bool(current and current.public),
                ),
                erase_quarantine=bool(forget),
            )

    def set_public(self, name: str, public: bool, *, owner: str | None, if_match: str | None = None) -> HeadEntry:
        """Change whether other keys may use a head."""
        with self._changing(name, owner, if_match) as current:
            return self._point(current.model_copy(update={"public": public, "revision": current.revision + 1}))

    def rollback(
        self, name: str, version: str | None = None, *, owner: str | None, if_match: str | None = None
    ) -> HeadEntry:
        """Make an earlier version the one that serves: the one before, unless ``version`` names a kept one.

        Raises:
            UnknownHeadError: See the class; or there is no such version, or none before (404).
            HeadDamagedError: That version is damaged (409).
        """
        with self._changing(name, owner, if_match) as current:
            before = [kept for kept in current.versions if kept < current.version]
            if version is None and not before:
                raise UnknownHeadError(f"head {name!r}: there is no version before {current.version}")
            target = before[-1] if version is None else version
            if target not in current.versions:
                raise UnknownHeadError(f"head {name!r}: no version {target!r:.40}; kept: {', '.join(current.versions)}")
            record, _, _ = self._versions.read(name, target)
            return self._point(moved(current, target, current.versions, record))

    def suggest(
        self, name: str, suggestions: Sequence[Suggestion], photos: Mapping[str, bytes], config: HeadsConfig
    ) -> None:
        """Store suggestions of one caller, with their photos by example id; they survive a power cut on return.

        Raises:
            UnknownHeadError: There is no head of that name (404).
            TooManySuggestionsError: Too many would wait (409).
        """
        with self._locked():
            if self._find(name) is None:
                raise unknown(name)
            new_bytes = sum(map(len, photos.values()))
            self._suggestions.check_room(name, suggestions[0].caller, len(suggestions), config, new_bytes)
            for suggestion in suggestions:
                self._suggestions.write(name, suggestion, photos.get(suggestion.example.id))

    def check_room(self, name: str, caller: str | None, new: int, config: HeadsConfig) -> None:
        """Raise TooManySuggestionsError (409) if a head cannot take ``new`` suggestions of a caller."""
        self._suggestions.check_room(name, caller, new, config)

    def drop_suggestions(self, name: str, ids: Collection[str]) -> None:
        """Delete suggestions that were decided, with their embeddings and photos."""
        with self._locked():
            self._suggestions.delete(name, ids)

    def delete(self, name: str, *, owner: str | None, if_match: str | None = None) -> None:
        """Delete a head with all its versions, embeddings, photos and suggestions."""
        with self._changing(name, owner, if_match):
            self._delete(name)

    def delete_all(self, owner: str | None) -> list[str]:
        """Delete all heads of an owner; return their names."""
        with self._locked():
            names = [entry.name for entry in self._entries_locked() if entry.owner == owner]
            for name in names:
                self._delete(name)
        return names

    def _find(self, name: str) -> HeadEntry | None:
        try:
            return self._pointers.read(name)
        except UnknownHeadError:
            return None
        except CorruptFileError:
            try:
                return self._repair(name)
            except HeadDamagedError:  # nothing is left, not even the owner: the name is free again
                return None

    def _entries_locked(self) -> Iterator[HeadEntry]:
        for name in self.marks():
            if entry := self._find(name):
                yield entry

    def _check(self, name: str, current: HeadEntry | None, owner: str | None, if_match: str | None) -> None:
        if current and current.owner != owner:
            raise HeadNameTakenError(f"head {name!r} belongs to another API key; choose another name")
        if if_match is not None and (current is None or current.etag != if_match):
            found = f"its ETag is {current.etag}" if current else "it does not exist"
            raise PreconditionFailedError(f"head {name!r}: If-Match is {if_match!r:.60} but {found}; read it again")

    def _check_number(self, owner: str | None, max_heads: int) -> None:
        number = sum(entry.owner == owner for entry in self._entries_locked())
        if number >= max_heads:
            raise TooManyHeadsError(f"there are {number} heads (limit: `heads.max_heads` = {max_heads}); delete one")

    def _delete(self, name: str) -> None:
        self._suggestions.delete_all(name)
        self._pointers.delete(name)
        self._versions.prune(name, (), erase_quarantine=True)

    @contextmanager
    def _changing(self, name: str, owner: str | None, if_match: str | None) -> Iterator[HeadEntry]:
        with self._locked():
            if (current := self._find(name)) is None:
                raise unknown(name)
            self._check(name, current, owner, if_match)
            yield current
