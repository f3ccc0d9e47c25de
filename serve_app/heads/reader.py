"""Reads the heads of a folder, and takes damaged versions out of service."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from serve_app.errors import HeadDamagedError, HeadFormatError, NotReadyError, UnknownHeadError
from serve_app.files import CorruptFileError, create_folder, lock_within
from serve_app.heads.pointers import Mark, Pointers
from serve_app.heads.stored import HeadEntry, LoadedHead, StoredHead, VersionRecord, make_entry, version_number
from serve_app.heads.suggestions import Suggestion, Suggestions
from serve_app.heads.versions import Versions

MAX_LOCK_WAIT_S = 20  # a writer holds the lock for milliseconds
log = logging.getLogger("serve_app")


class HeadReader:
    """Reads heads, in as many processes as want to; see store.py for the files.

    Every method raises OSError if the folder cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pointers, self._versions = Pointers(folder / "pointers"), Versions(folder)
        self._suggestions = Suggestions(folder)

    def stamp(self) -> int:
        """Return a time in ns that changes when any head changes; 0 before the first head."""
        return self._pointers.stamp()

    def marks(self) -> dict[str, Mark]:
        """Return the name of each head with a mark that changes when the head changes."""
        return self._pointers.marks()

    def entries(self) -> list[HeadEntry]:
        """Return all heads, sorted by name; a head that is damaged beyond repair is logged and left out."""
        found = []
        for name in sorted(self.marks()):
            try:
                found.append(self.entry(name))
            except UnknownHeadError:  # deleted a moment ago
                continue
            except HeadDamagedError as error:
                log.error("%s", error)
        return found

    def entry(self, name: str) -> HeadEntry:
        """Return which version of a head serves; a damaged pointer is made again from the versions.

        Raises:
            UnknownHeadError: There is no head of that name (404).
            HeadDamagedError: The pointer and all versions are damaged (409).
        """
        try:
            return self._pointers.read(name)
        except CorruptFileError as error:
            log.error("head %s: its pointer file is damaged (%s)", name, error)
            return self.repair(name)

    def load(self, entry: HeadEntry) -> LoadedHead:
        """Return the version that an entry names, as it serves.

        Raises:
            UnknownHeadError: The version was deleted meanwhile (404).
            HeadDamagedError: A file of the version is damaged (409).
        """
        return LoadedHead(entry, self._versions.read(entry.name, entry.version)[1])

    def read(self, name: str, version: str | None = None) -> StoredHead:
        """Return the version that serves, or another kept one, with its report and examples.

        If the version that serves is damaged, it is quarantined, and the one before it is returned.

        Raises:
            UnknownHeadError: There is no head of that name, or no such version of it (404).
            HeadDamagedError: No version is left, or the named one is damaged (409).
        """
        entry = self.entry(name)
        if version is not None:
            if version not in entry.versions:
                raise UnknownHeadError(f"head {name!r}: no version {version!r:.40}; kept: {', '.join(entry.versions)}")
            record, head, examples = self._versions.read(name, version)
            return StoredHead(entry, head, record.report, examples)
        try:
            record, head, examples = self._versions.read(name, entry.version)
        except (UnknownHeadError, HeadDamagedError):  # replaced and pruned a moment ago, or damaged
            entry = self.repair(name)
            record, head, examples = self._versions.read(name, entry.version)
        return StoredHead(entry, head, record.report, examples)

    def photo(self, name: str, example_id: str) -> bytes:
        """Return the uploaded file of an example of the version that serves.

        Raises:
            UnknownHeadError: There is no such head, example or kept photo (404).
        """
        return self._versions.photo(name, self.entry(name).version, example_id)

    def copy(self, entry: HeadEntry, folder: Path) -> Path:
        """Copy the version that an entry names into a folder, for ``versions.read_head``; return its path there.

        Raises:
            UnknownHeadError: The version was deleted meanwhile (404).
        """
        target = folder / entry.version
        try:
            self._versions.copy(entry.name, entry.version, target)
        except FileNotFoundError:
            raise UnknownHeadError(f"head {entry.name!r}: no version {entry.version!r}") from None
        return target

    def suggestions(self, name: str) -> list[Suggestion]:
        """Return the suggestions that wait for the owner of a head, the oldest first."""
        return self._suggestions.read(name)

    def suggestion_counts(self, heads: Collection[str] | None = None) -> Counter[str]:
        """Return how many suggestions wait, by head; of some heads or of all."""
        return self._suggestions.counts(heads)

    def suggested_photo(self, name: str, suggestion_id: str) -> bytes:
        """Return the uploaded file of a suggestion.

        Raises:
            UnknownHeadError: There is no such suggestion, or its photo was not kept (404).
        """
        return self._suggestions.photo(name, suggestion_id)

    def size(self, name: str) -> int:
        """Return the bytes of all versions of a head, kept photos included."""
        return self._versions.size(name)

    def repair(self, name: str) -> HeadEntry:
        """Quarantine the version that serves if it is damaged, and let the newest sound one before it serve.

        A pointer that is damaged is made again; the head then is not public. Return the entry that holds now.

        Raises:
            UnknownHeadError: The head was deleted meanwhile (404).
            HeadDamagedError: No version is left (409).
        """
        with self._locked():
            return self._repair(name)

    def sweep(self) -> None:
        """Delete what killed processes left, such as versions that no pointer names, and expired suggestions."""
        with self._locked():
            kept = {name: self._kept_versions(name) for name in self.marks()}
            self._versions.sweep(kept)
            self._suggestions.sweep(kept)

    def _repair(self, name: str) -> HeadEntry:
        try:
            current: HeadEntry | None = self._pointers.read(name)
        except CorruptFileError:
            current = None
        kept = list(current.versions) if current else self._versions.names(name)
        candidates = [version for version in kept if current is None or version <= current.version]
        for version in reversed(candidates):
            try:
                record = self._versions.read(name, version)[0]
            except HeadFormatError:
                raise
            except HeadDamagedError as error:
                log.error("head %s: %s; it is moved to quarantine/%s", name, error, name)
                self._versions.quarantine(name, version)
                kept.remove(version)
                continue
            except UnknownHeadError:
                kept.remove(version)
                continue
            if current is None:
                revision = version_number(version)
                return self._point(make_entry(name, version, kept, record, revision=revision, public=False))
            return current if version == current.version else self._point(moved(current, version, kept, record))
        raise HeadDamagedError(f"head {name!r}: its files are damaged and no earlier version is left; teach it again")

    def _kept_versions(self, name: str) -> Collection[str]:
        try:
            return self._pointers.read(name).versions
        except (CorruptFileError, UnknownHeadError):
            return self._versions.names(name)

    def _point(self, entry: HeadEntry, erase_quarantine: bool = False) -> HeadEntry:
        """Let a version serve, then delete the versions that the entry does not name."""
        self._pointers.write(entry)
        self._versions.prune(entry.name, entry.versions, erase_quarantine)
        return entry

    @contextmanager
    def _locked(self) -> Iterator[None]:
        create_folder(self.folder)
        try:
            with lock_within(self.folder / ".lock", MAX_LOCK_WAIT_S):
                yield
        except BlockingIOError:
            raise NotReadyError("another change of a head takes long; retry later") from None


def moved(current: HeadEntry, version: str, kept: Sequence[str], record: VersionRecord) -> HeadEntry:
    """Return the entry of a head of which another version serves now."""
    return make_entry(current.name, version, kept, record, revision=current.revision + 1, public=current.public)
