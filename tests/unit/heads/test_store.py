"""The store keeps versions that never change, and checks owner and ETag where it writes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.errors import (
    HeadNameTakenError,
    PreconditionFailedError,
    TooManyHeadsError,
    UnknownHeadError,
)
from serve_app.heads.store import HeadStore
from serve_app.heads.stored import HeadEntry
from tests.support.faults import DiskRecorder, full_disk
from tests.support.heads import examples_around, unfitted

CUPS = examples_around(["my cup", "other cup"], 3)


@pytest.fixture
def store(tmp_path: Path) -> HeadStore:
    return HeadStore(tmp_path / "heads", keep_versions=2)


def put(store: HeadStore, name: str = "cups", seed: int = 0, owner: str | None = "ann", **options: object) -> HeadEntry:
    return store.write(name, unfitted(CUPS, seed), CUPS, owner=owner, **options)  # type: ignore[arg-type]


def test_a_head_reads_as_it_was_written(store: HeadStore) -> None:
    """Weights come back exactly, embeddings within float16, and everything else as it was."""
    fitted = unfitted(CUPS)
    entry = store.write("cups", fitted, CUPS, owner="ann", public=True)
    stored = store.read("cups")
    assert stored.entry == entry == store.entry("cups") == store.entries()[0]
    assert (entry.owner, entry.public, entry.photos, entry.labels) == ("ann", True, 6, ("my cup", "other cup"))
    assert stored.report == fitted.report
    np.testing.assert_array_equal(stored.head.weight, fitted.head.weight)
    np.testing.assert_array_equal(stored.head.bias, fitted.head.bias)
    for before, after in zip(CUPS, stored.examples, strict=True):
        np.testing.assert_allclose(after.embedding, before.embedding, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(after.mirrored, before.mirrored, rtol=1e-3, atol=1e-6)
        assert (after.id, after.class_name, after.added) == (before.id, before.class_name, before.added)
    expected = fitted.head.classify(CUPS[0].embedding, 2)
    assert store.load(entry).head.classify(CUPS[0].embedding, 2).scores == expected.scores


def test_versions_are_kept_n_deep(store: HeadStore) -> None:
    """``keep_versions`` earlier versions stay; older ones leave the disk."""
    names = [put(store, seed=seed).version for seed in range(4)]
    assert list(store.entry("cups").versions) == names[1:]
    assert sorted(path.name for path in (store.folder / "versions" / "cups").iterdir()) == names[1:]


def test_rollback_goes_back_and_a_new_version_goes_on_from_there(store: HeadStore) -> None:
    """What was rolled back never serves again by itself: the next rollback leads to what served before."""
    first, second = put(store, seed=1), put(store, seed=2)
    assert store.rollback("cups", owner="ann").version == first.version
    weight = store.read("cups").head.weight
    np.testing.assert_array_equal(weight, unfitted(CUPS, 1).head.weight)
    assert store.rollback("cups", second.version, owner="ann").version == second.version
    store.rollback("cups", owner="ann")
    third = put(store, seed=3)
    assert third.version > second.version
    assert store.rollback("cups", owner="ann").version == first.version
    with pytest.raises(UnknownHeadError, match="no version before"):
        store.rollback("cups", owner="ann")
    with pytest.raises(UnknownHeadError, match="kept: "):
        store.rollback("cups", second.version, owner="ann")


def test_every_change_has_an_etag_of_its_own(store: HeadStore) -> None:
    """Writing, sharing, rolling back, and making a deleted head again: no ETag comes twice."""
    tags = [put(store).etag, put(store).etag, store.set_public("cups", True, owner="ann").etag]
    tags.append(store.rollback("cups", owner="ann").etag)
    store.delete("cups", owner="ann")
    tags.append(put(store, seed=1).etag)
    assert len(set(tags)) == len(tags)


def test_an_outdated_etag_changes_nothing(store: HeadStore) -> None:
    first = put(store)
    current = put(store, seed=1, if_match=first.etag)
    for change in (
        lambda: put(store, seed=2, if_match=first.etag),
        lambda: put(store, seed=2, if_absent=True),
        lambda: put(store, "new", if_match=first.etag),
        lambda: store.rollback("cups", owner="ann", if_match=first.etag),
        lambda: store.set_public("cups", True, owner="ann", if_match=first.etag),
        lambda: store.delete("cups", owner="ann", if_match=first.etag),
    ):
        with pytest.raises(PreconditionFailedError):
            change()
    assert store.entries() == [current]


def test_of_two_writers_at_once_one_gets_412(store: HeadStore) -> None:
    """Eight threads write on the same ETag: one version is stored, seven get the error."""
    before = put(store)

    def write(seed: int) -> str:
        try:
            return put(store, seed=seed, if_match=before.etag).version
        except PreconditionFailedError as error:
            return error.code

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(write, range(8)))
    assert outcomes.count("precondition_failed") == 7
    assert store.entry("cups").version in outcomes


def test_heads_of_other_owners_stay_untouched(store: HeadStore) -> None:
    current = put(store)
    for change in (
        lambda: put(store, owner="bob"),
        lambda: put(store, owner=None),
        lambda: store.rollback("cups", owner="bob"),
        lambda: store.set_public("cups", True, owner="bob"),
        lambda: store.delete("cups", owner="bob"),
    ):
        with pytest.raises(HeadNameTakenError):
            change()
    assert store.delete_all("bob") == []
    assert store.entries() == [current]


def test_the_number_of_heads_is_bounded_by_owner(store: HeadStore) -> None:
    """An owner at the limit may replace a head and not add one; other owners are not affected."""
    put(store, "one", max_heads=2)
    put(store, "two", max_heads=2)
    with pytest.raises(TooManyHeadsError, match=r"heads\.max_heads"):
        put(store, "three", max_heads=2)
    put(store, "two", seed=1, max_heads=2)
    put(store, "three", owner="bob", max_heads=2)


def test_deleting_leaves_nothing_behind(store: HeadStore) -> None:
    """Neither versions nor quarantine nor photos of a deleted head stay on the disk."""
    photographed = [replace(each, kept_photo=True) for each in CUPS]
    store.write("cups", unfitted(CUPS), photographed, owner="ann", photos={each.id: b"photo" for each in CUPS})
    damaged = put(store, seed=1)
    (store.folder / "versions" / "cups" / damaged.version / "head.safetensors").write_bytes(b"")
    store.repair("cups")
    put(store, "other")
    store.delete("cups", owner="ann")
    assert not [path for path in store.folder.rglob("*") if "cups" in path.parts or path.name.startswith(".d")]
    with pytest.raises(UnknownHeadError):
        store.entry("cups")
    assert store.delete_all("ann") == ["other"]
    assert store.entries() == []


def test_an_operator_deletes_the_heads_of_a_key(store: HeadStore) -> None:
    """`serve-app keys delete-heads` deletes the heads of one key and leaves those of others."""
    put(store, "one", owner="ann")
    put(store, "two", owner="ann")
    theirs = put(store, "three", owner="bob")
    done = CliRunner().invoke(app, ["keys", "delete-heads", "ann", "--heads", str(store.folder)])
    assert (done.exit_code, done.output) == (0, f"deleted 2 heads of ann in {store.folder}\n")
    assert store.entries() == [theirs]


def test_forgotten_examples_leave_every_version(store: HeadStore) -> None:
    """After an example is forgotten no file of the store holds its embedding, and rollback cannot bring it back."""
    put(store)
    rest = CUPS[1:]
    kept = store.write("cups", unfitted(rest), rest, owner="ann", forget={CUPS[0].id})
    assert kept.versions == (kept.version,)
    assert [path.name for path in (store.folder / "versions" / "cups").iterdir()] == [kept.version]
    again = store.write("cups", unfitted(rest, 1), rest, owner="ann", forget={CUPS[0].id})
    assert again.versions == (kept.version, again.version)


def test_kept_photos_follow_their_examples(store: HeadStore) -> None:
    """A new version keeps the photos of the examples that it has; others are gone with the last version of theirs."""
    photographed = [replace(each, kept_photo=True) for each in CUPS]
    photos = {each.id: each.id.encode() for each in photographed}
    store.write("cups", unfitted(CUPS), photographed, owner="ann", photos=photos)
    rest = [*photographed[1:4], replace(CUPS[4], kept_photo=False)]
    store.write("cups", unfitted(rest), rest, owner="ann", forget={CUPS[0].id})
    assert store.photo("cups", CUPS[1].id) == photos[CUPS[1].id]
    for example_id in (CUPS[0].id, CUPS[4].id, "../head.json", ""):
        with pytest.raises(UnknownHeadError):
            store.photo("cups", example_id)


@pytest.mark.parametrize("name", ["../cups", "", ".", "Cups", "a" * 64, "cups.json", "a/b", "cups\n"])
def test_strange_names_are_unknown(store: HeadStore, name: str) -> None:
    put(store)
    for read in (store.entry, store.read, lambda name: store.delete(name, owner="ann")):
        with pytest.raises(UnknownHeadError):
            read(name)


def test_everything_is_on_disk_before_it_gets_its_name(store: HeadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = DiskRecorder(monkeypatch)
    put(store)
    put(store, seed=1)
    store.rollback("cups", owner="ann")
    assert (recorder.unsafe, recorder.unnamed) == ([], [])
    assert "cups.json" in recorder.renamed


def test_a_full_disk_leaves_the_version_that_serves(store: HeadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write fails with OSError, and leaves no draft."""
    before = put(store)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(OSError, match="No space"):
            put(store, seed=1)
    assert store.entries() == [before]
    assert not list(store.folder.glob(".draft-*"))
