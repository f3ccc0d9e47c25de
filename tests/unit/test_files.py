"""Files survive what happens to disks: a power cut, a full disk, other writers, another version."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from threading import Event, Thread

import pytest

from serve_app.files import (
    MAX_PARTIAL_AGE_S,
    CorruptFileError,
    atomic_write,
    create_folder,
    delete_partial_files,
    exclusive_lock,
    lock_within,
    read_stored,
)
from serve_app.model_card import ModelRef
from tests.support.faults import WRONG_JSON, DiskRecorder, full_disk


def write(path: Path, text: str) -> None:
    with atomic_write(path) as unfinished:
        unfinished.write_text(text)


def test_file_is_on_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is fsynced before the rename, and the folder after it."""
    disk = DiskRecorder(monkeypatch)
    write(tmp_path / "a", "new")
    assert (disk.renamed, disk.unsafe, disk.unnamed) == ({"a"}, [], [])


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    write(tmp_path / "a", "old")
    monkeypatch.setattr(os, function, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_writers_never_share_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process and thread ids repeat on other nodes and in containers; temporary names do not depend on them."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(threading, "get_native_id", lambda: 1)
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        assert first != second
        assert first.name.startswith(".")
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # its block ended last


def test_folder_that_cannot_be_fsynced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems refuse to fsync a folder."""

    def refuse(descriptor: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


def test_created_folders_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new name is fsynced in its parent; a folder that exists costs nothing."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    create_folder(tmp_path / "a" / "b")
    create_folder(tmp_path / "a" / "b")
    assert sorted(synced) == [str(tmp_path), str(tmp_path / "a")]


def test_stored_file_of_a_newer_version_reads(tmp_path: Path) -> None:
    """Unknown fields are ignored."""
    path = tmp_path / "ref.json"
    path.write_text('{"name": "a", "version": "1", "sha256": "0", "new": {"deep": [1]}}')
    assert read_stored(ModelRef, path) == ModelRef(name="a", version="1", sha256="0")


@pytest.mark.parametrize("content", [*WRONG_JSON, b"{}", b'{"name": 1, "version": "1", "sha256": "0"}'])
def test_corrupt_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    """Empty, cut, zeros, another type, nested too deep, a missing or wrong field: one error without the path."""
    path = tmp_path / "ref.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError) as caught:
        read_stored(ModelRef, path)
    assert str(tmp_path) not in str(caught.value)


def test_old_partial_files_are_deleted(tmp_path: Path) -> None:
    """Those of killed processes are; fresh ones, other files and the file itself stay."""
    old = time.time() - MAX_PARTIAL_AGE_S - 60
    names = (".w.safetensors.0a1b2c3d", "w.safetensors.77.partial", "w.safetensors", ".x.safetensors.0a1b2c3d")
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    (tmp_path / ".w.safetensors.ffffffff").touch()
    delete_partial_files(tmp_path / "w.safetensors")
    kept = {".w.safetensors.ffffffff", "w.safetensors", ".x.safetensors.0a1b2c3d"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    """A second holder gets the lock once the first one is done, or an error when it has waited long enough."""
    path, got_it = tmp_path / ".lock", Event()

    def wait_for_it() -> None:
        with lock_within(path, 60):
            got_it.set()

    waiting = Thread(target=wait_for_it)
    with exclusive_lock(path):
        with pytest.raises(BlockingIOError), lock_within(path, 0):
            pass
        waiting.start()
        assert not got_it.is_set()
    waiting.join()
    assert got_it.is_set()
