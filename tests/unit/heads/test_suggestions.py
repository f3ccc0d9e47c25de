"""The store keeps suggestions until they are decided or expire; deleted ones leave the disk."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import TooManySuggestionsError, UnknownHeadError
from serve_app.heads.store import HeadStore
from serve_app.heads.suggestions import Suggestion
from serve_app.heads_config import HeadsConfig
from tests.support.faults import POWER_CUT, full_disk
from tests.support.heads import BACKBONE, examples_around, suggestion, unfitted

CUPS = examples_around(["my cup", "other cup"], 3)
CONFIG = HeadsConfig(folder="heads", max_suggestions=4, max_suggestions_per_key=2)


@pytest.fixture
def store(tmp_path: Path) -> HeadStore:
    """A store with one head."""
    store = HeadStore(tmp_path / "heads")
    store.write("cups", unfitted(CUPS), CUPS, owner="ann")
    return store


def suggest(store: HeadStore, *suggestions: Suggestion, photo: bytes | None = None) -> None:
    photos = {} if photo is None else {each.example.id: photo for each in suggestions}
    store.suggest("cups", suggestions, photos, CONFIG)


def ids(store: HeadStore) -> list[str]:
    return [each.example.id for each in store.suggestions("cups")]


def files(store: HeadStore) -> list[Path]:
    return [path for path in (store.folder / "suggestions").rglob("*") if path.is_file()]


def test_a_suggestion_reads_as_it_was_written(store: HeadStore) -> None:
    """Embeddings within float16, everything else as it was, in another process too; the head is as before."""
    before, sent = store.entry("cups"), suggestion(CUPS[0], kept_photo=True)
    suggest(store, sent, photo=b"a photo")
    (read,) = HeadStore(store.folder).suggestions("cups")
    assert (read.caller, read.backbone, read.expires) == ("bob", BACKBONE, sent.expires)
    np.testing.assert_allclose(read.example.embedding, sent.example.embedding, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(read.example.mirrored, sent.example.mirrored, rtol=1e-3, atol=1e-6)
    for name in ("id", "class_name", "photo_sha256", "added", "kept_photo"):
        assert getattr(read.example, name) == getattr(sent.example, name)
    assert store.suggested_photo("cups", sent.example.id) == b"a photo"
    assert store.suggestion_counts() == {"cups": 1}
    assert not store.suggestion_counts([])
    assert store.entry("cups") == before


def test_suggestions_are_bounded(store: HeadStore) -> None:
    """Of a caller, of all, and their bytes; of a request that is too large nothing is stored."""
    with pytest.raises(TooManySuggestionsError, match="0 photos of yours wait"):
        suggest(store, *(suggestion(each) for each in CUPS[:3]))
    suggest(store, suggestion(CUPS[0]), suggestion(CUPS[1]))
    with pytest.raises(TooManySuggestionsError, match="max_suggestions_per_key"):
        store.check_room("cups", "bob", 1, CONFIG)
    suggest(store, suggestion(CUPS[2], caller="carol"), suggestion(CUPS[3], caller="carol"))
    with pytest.raises(TooManySuggestionsError, match="4 photos wait"):
        store.check_room("cups", None, 1, CONFIG)
    store.drop_suggestions("cups", ids(store)[:1])
    with pytest.raises(TooManySuggestionsError, match="bytes"):
        suggest(store, suggestion(CUPS[4], caller=None), photo=bytes(CONFIG.max_suggestion_bytes))
    assert len(ids(store)) == len(files(store)) == 3


def test_suggestions_expire(store: HeadStore) -> None:
    """Nobody sees an expired one, and the next sweep deletes it."""
    old, young = suggestion(CUPS[0], days=-1), suggestion(CUPS[1])
    suggest(store, old, young, photo=b"a photo")
    assert ids(store) == [young.example.id]
    assert store.suggestion_counts(["cups"])["cups"] == 1
    with pytest.raises(UnknownHeadError):
        store.suggested_photo("cups", old.example.id)
    store.sweep()
    assert [path.name for path in files(store)] == [f"{young.expires}-{young.example.id}.safetensors"]


def test_a_head_takes_its_suggestions_along(store: HeadStore) -> None:
    """Also where a deletion was interrupted; there are none for a head that does not exist."""
    suggest(store, suggestion(CUPS[0]))
    store.delete("cups", owner="ann")
    assert not files(store)
    with pytest.raises(UnknownHeadError):
        suggest(store, suggestion(CUPS[0]))
    store.write("cups", unfitted(CUPS), CUPS, owner="ann")
    suggest(store, suggestion(CUPS[0]))
    (store.folder / "pointers" / "cups.json").unlink()
    store.sweep()
    assert not files(store)


def test_a_file_that_was_being_written_is_swept(store: HeadStore) -> None:
    """It holds an embedding, so it does not stay after a process was killed; a young one may still be written."""
    suggest(store, suggestion(CUPS[0]))
    (path,) = files(store)
    partial = path.with_name(f".{path.name}.0123abcd")
    partial.write_bytes(b"x")
    store.sweep()
    assert partial.exists()
    os.utime(partial, (0, time.time() - 2 * 86400))
    store.sweep()
    assert files(store) == [path]


@pytest.mark.parametrize("content", [*POWER_CUT, b'{"suggestion": 1}'])
def test_a_damaged_file_hides_no_other(store: HeadStore, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and left out, and can be deleted like the others."""
    damaged, sound = suggestion(CUPS[0]), suggestion(CUPS[1])
    suggest(store, damaged, sound, photo=b"a photo")
    (path,) = (path for path in files(store) if damaged.example.id in path.name)
    path.write_bytes(content)
    with caplog.at_level(logging.ERROR, "serve_app"):
        assert ids(store) == [sound.example.id]
    assert path.name in caplog.text
    with pytest.raises(UnknownHeadError):
        store.suggested_photo("cups", damaged.example.id)
    store.drop_suggestions("cups", [damaged.example.id])
    assert len(files(store)) == 1


def test_a_full_disk_leaves_no_half_of_one(store: HeadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error reaches the caller, and what waited before still does."""
    suggest(store, suggestion(CUPS[0]))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            suggest(store, suggestion(CUPS[1]))
    assert len(ids(store)) == len(files(store)) == 1
