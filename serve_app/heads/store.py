"""The folder of heads. Each version is immutable; one small file per head names the version that serves.

    pointers/<name>.json                         which version serves, owner, ETag; replaced atomically
    versions/<name>/<version>/head.safetensors   weights and embeddings
    versions/<name>/<version>/head.json          labels, card, report, examples
    versions/<name>/<version>/photos/<id>        uploaded files, if they are kept
    quarantine/<name>/<version>/                 a damaged version, for the operator
    .draft-<hex>/  .deleted-<hex>/               a version that is being written, a folder that is being deleted
    .lock                                        held while a version is published or deleted

Readers need no lock: a pointer names only versions that are on disk as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from serve_app.heads.examples import Example
from serve_app.heads.fit import Fitted
from serve_app.heads.stored import HeadEntry, LoadedHead, StoredHead


class HeadStore:
    """Reads and writes the heads of one folder; many processes on many nodes may share it.

    Every method raises OSError if the folder cannot be read or written.

    Args:
        folder: A folder on a disk or a shared file system with locks (NFS v4, EFS).
        keep_versions: Number of earlier versions of a head that are kept for ``rollback``.
    """

    def __init__(self, folder: Path, keep_versions: int = 3) -> None:
        self.folder, self.keep_versions = folder, keep_versions

    def entries(self) -> list[HeadEntry]:
        """Return all heads, sorted by name."""
        raise NotImplementedError

    def entry(self, name: str) -> HeadEntry:
        """Return which version of a head serves.

        Raises:
            UnknownHeadError: There is no head of that name (404).
        """
        raise NotImplementedError

    def versions(self, name: str) -> list[str]:
        """Return the kept versions of a head, the oldest first."""
        raise NotImplementedError

    def load(self, entry: HeadEntry) -> LoadedHead:
        """Return the version that an entry names, as it serves.

        Raises:
            UnknownHeadError: The version was deleted meanwhile (404).
            HeadDamagedError: A file of the version is damaged (409).
        """
        raise NotImplementedError

    def read(self, name: str) -> StoredHead:
        """Return the version that serves, with its report and examples.

        A damaged version is quarantined, and the one before it is returned.

        Raises:
            UnknownHeadError: There is no head of that name (404).
            HeadDamagedError: No version is left (409).
        """
        raise NotImplementedError

    def photo(self, name: str, example_id: str) -> bytes:
        """Return the uploaded file of an example of the version that serves.

        Raises:
            UnknownHeadError: There is no such head, example or kept photo (404).
        """
        raise NotImplementedError

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
            owner: Name of the API key; a head of another owner is not touched.
            public: Whether other keys may use it; None leaves it as it is, which is False for a new head.
            if_match: ETag of the state that the caller saw (If-Match); None replaces any.
            if_absent: Only a head that does not exist yet is written (If-None-Match: *).
            photos: New uploaded files by example id. Photos of the version before are kept for the same examples.
            forget: Ids of examples whose embeddings must not stay in any earlier version either.
            max_heads: Number of heads that one owner may have.

        Raises:
            PreconditionFailedError: The head's ETag is another one by now, or the head exists (412).
            HeadNameTakenError: The name belongs to another owner (409).
            TooManyHeadsError: The owner has ``max_heads`` heads (409).
            NotReadyError: Other writers hold the folder's lock for too long (503).
        """
        raise NotImplementedError

    def set_public(self, name: str, public: bool, *, owner: str | None, if_match: str | None = None) -> HeadEntry:
        """Change whether other keys may use a head; raise as ``write`` and ``entry`` do."""
        raise NotImplementedError

    def rollback(
        self, name: str, version: str | None = None, *, owner: str | None, if_match: str | None = None
    ) -> HeadEntry:
        """Make an earlier version the one that serves: the one before, unless ``version`` names another.

        Raises:
            UnknownHeadError: There is no such head or version, or none before (404).
            PreconditionFailedError: See ``write`` (412).
        """
        raise NotImplementedError

    def delete(self, name: str, *, owner: str | None, if_match: str | None = None) -> None:
        """Delete a head with all its versions, embeddings and photos; raise as ``write`` and ``entry`` do."""
        raise NotImplementedError

    def delete_all(self, owner: str | None) -> list[str]:
        """Delete all heads of an owner; return their names."""
        raise NotImplementedError

    def quarantine(self, entry: HeadEntry) -> HeadEntry:
        """Move a damaged version aside and let the version before it serve; return the entry that holds now.

        Nothing happens if the version turns out to be readable, or another one serves already.

        Raises:
            UnknownHeadError: The head was deleted meanwhile (404).
            HeadDamagedError: There is no version before it (409).
        """
        raise NotImplementedError
