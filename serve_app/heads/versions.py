"""The folders of versions: written once, then only read, moved to quarantine or deleted."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from serve_app.errors import HeadBackboneChangedError, HeadDamagedError, UnknownHeadError
from serve_app.files import MAX_PARTIAL_AGE_S, create_folder, folder_bytes, fsync
from serve_app.heads.examples import Example
from serve_app.heads.stored import VersionRecord, decode_head, decode_record
from serve_app.heads.taught import TaughtHead
from serve_app.model_card import ModelRef

RECORD, TENSORS, PHOTOS = "head.json", "head.safetensors", "photos"
DRAFT, DELETED = ".draft-", ".deleted-"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.ENOSYS)  # some file systems lack hard links
log = logging.getLogger("serve_app")


class Versions:
    """The versions below one folder of heads. Callers hold the folder's lock, except to read and to draft."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._versions, self._quarantine = folder, folder / "versions", folder / "quarantine"

    def names(self, head: str) -> list[str]:
        """Return the versions of a head that have a folder, the oldest first."""
        try:
            return sorted(os.listdir(self._versions / head))
        except FileNotFoundError:
            return []

    def copy(self, head: str, version: str, target: Path) -> None:
        """Copy a version without its photos to ``target``, a folder that does not exist, on disk."""
        create_folder(target)
        for name in (RECORD, TENSORS):
            shutil.copyfile(self._versions / head / version / name, target / name)
            fsync(target / name)
        fsync(target)

    def size(self, head: str) -> int:
        """Return the bytes of all files of a head's versions; a photo that several versions share counts for each."""
        return folder_bytes(self._versions / head)

    def read(self, head: str, version: str) -> tuple[VersionRecord, TaughtHead, tuple[Example, ...]]:
        """Read a version and check that it is what was written.

        Raises:
            UnknownHeadError: There is no such version (404).
            HeadDamagedError: A file is missing or differs from what was written (409).
        """
        folder = self._versions / head / version
        try:
            record = decode_record((folder / RECORD).read_bytes(), version)
            return record, *decode_head(record, (folder / TENSORS).read_bytes())
        except (FileNotFoundError, IsADirectoryError) as error:
            if folder.is_dir():
                raise HeadDamagedError(f"version {version}: a file is missing: {error}") from None
            raise UnknownHeadError(f"head {head!r}: no version {version!r:.40}") from None

    def photo(self, head: str, version: str, example_id: str) -> bytes:
        """Return a kept photo; raise UnknownHeadError if there is none, or as ``read``."""
        folder = self._versions / head / version
        with suppress(FileNotFoundError):
            record = decode_record((folder / RECORD).read_bytes(), version)
            if any(example.id == example_id and example.kept_photo for example in record.examples):
                return (folder / PHOTOS / example_id).read_bytes()
        raise UnknownHeadError(f"head {head!r}: no kept photo of an example {example_id!r:.40}")

    @contextmanager
    def draft(self, tensors: bytes, photos: Mapping[str, bytes]) -> Iterator[Path]:
        """Yield a folder with the large files of a new version, on disk; ``publish`` moves it away.

        Needs no lock, so that writing photos keeps nobody waiting.
        """
        draft = self._folder / f"{DRAFT}{uuid.uuid4().hex}"
        try:
            (draft / PHOTOS).mkdir(parents=True)
            _write(draft / TENSORS, tensors)
            for example_id, photo in photos.items():
                _write(draft / PHOTOS / example_id, photo)
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def publish(
        self, draft: Path, content: bytes, record: VersionRecord, head: str, version: str, base: str | None
    ) -> None:
        """Complete a draft with head.json and the kept photos of the version ``base``, and give it its name."""
        _write(draft / RECORD, content)
        for example in record.examples:
            photo = draft / PHOTOS / example.id
            if base and example.kept_photo and not photo.exists():
                try:
                    _link(self._versions / head / base / PHOTOS / example.id, photo)
                except FileNotFoundError:
                    log.warning("head %s: the photo of example %s is missing", head, example.id)
        fsync(draft / PHOTOS)
        fsync(draft)
        create_folder(self._versions / head)
        draft.rename(self._versions / head / version)
        fsync(self._versions / head)

    def without(self, head: str, versions: Sequence[str], forget: Collection[str]) -> list[str]:
        """Return the versions that hold none of these examples for sure."""
        return [version for version in versions if not (forget and self._holds(head, version, forget))]

    def quarantine(self, head: str, version: str) -> None:
        """Move a version to where it is neither served nor pruned."""
        create_folder(self._quarantine / head)
        (self._versions / head / version).rename(self._quarantine / head / f"{version}-{uuid.uuid4().hex[:8]}")
        fsync(self._quarantine / head)

    def prune(self, head: str, kept: Collection[str], erase_quarantine: bool = False) -> None:
        """Delete the versions of a head that are not kept. What cannot be deleted is logged; ``sweep`` tries again."""
        folder = self._versions / head
        doomed = [folder / version for version in self.names(head) if version not in kept] if kept else [folder]
        for path in [*doomed, *([self._quarantine / head] if erase_quarantine else [])]:
            delete_folder(path, self._folder)

    def sweep(self, kept: Mapping[str, Collection[str]]) -> None:
        """Delete old drafts, folders whose deletion was interrupted, and versions that are not kept, by head."""
        with suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                is_old_draft = path.name.startswith(DRAFT) and path.stat().st_mtime < time.time() - MAX_PARTIAL_AGE_S
                if is_old_draft or path.name.startswith(DELETED):
                    shutil.rmtree(path, ignore_errors=True)
            for path in self._versions.iterdir():
                self.prune(path.name, kept.get(path.name, ()), erase_quarantine=path.name not in kept)

    def _holds(self, head: str, version: str, examples: Collection[str]) -> bool:
        try:
            record = self.read(head, version)[0]
        except (UnknownHeadError, HeadDamagedError):
            return True
        return any(example.id in examples for example in record.examples)


def read_head(folder: Path, model: ModelRef) -> TaughtHead:
    """Return the head in the folder of a version, for embeddings of these weights.

    Raises:
        HeadDamagedError: A file differs from what was written (409).
        HeadBackboneChangedError: It belongs to other weights (409).
        OSError: The folder cannot be read.
    """
    record = decode_record((folder / RECORD).read_bytes(), folder.name)
    if record.backbone.sha256 != model.sha256:
        raise HeadBackboneChangedError(
            f"the head was taught on weights {record.backbone.version!r} ({record.backbone.sha256:.8}), not on "
            f"{model.version!r} ({model.sha256:.8})"
        )
    return decode_head(record, (folder / TENSORS).read_bytes())[0]


def delete_folder(path: Path, root: Path) -> None:
    """Take the name of a folder below a folder of heads in one step, then delete its content, or log why not."""
    doomed = root / f"{DELETED}{uuid.uuid4().hex}"
    try:
        path.rename(doomed)
        fsync(path.parent)
        shutil.rmtree(doomed)
    except FileNotFoundError:
        return
    except OSError as error:
        log.error("%s cannot be deleted now: %s", path, error)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    fsync(path)


def _link(source: Path, target: Path) -> None:
    """Give a file, which never changes, a second name; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copyfile(source, target)
        fsync(target)
