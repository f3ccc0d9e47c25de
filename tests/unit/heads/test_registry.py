"""A replica follows the store: it takes new versions whole, loads heads when they are used, and survives faults."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import pytest

from serve_app.errors import HeadDamagedError, NotReadyError, UnknownHeadError
from serve_app.heads.registry import HeadRegistry
from serve_app.heads.store import HeadStore
from serve_app.heads.stored import HeadEntry, LoadedHead
from tests.support.heads import examples_around, unfitted

CUPS = examples_around(["my cup", "other cup"], 3)


class CountingStore(HeadStore):
    """Counts what costs time."""

    listed = loaded = read = 0

    def marks(self) -> dict[str, tuple[int, int]]:
        """Count."""
        self.listed += 1
        return super().marks()

    def entry(self, name: str) -> HeadEntry:
        """Count."""
        self.read += 1
        return super().entry(name)

    def load(self, entry: HeadEntry) -> LoadedHead:
        """Count."""
        self.loaded += 1
        return super().load(entry)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path / "heads")


@pytest.fixture
def registry(store: CountingStore) -> HeadRegistry:
    """A registry for which every change is long ago."""
    return HeadRegistry(store, clock=lambda: time.time() + 60)


def put(store: HeadStore, name: str = "cups", seed: int = 0) -> HeadEntry:
    return store.write(name, unfitted(CUPS, seed), CUPS, owner="ann")


def is_taught(loaded: LoadedHead, seed: int) -> bool:
    return bool((loaded.head.weight == unfitted(CUPS, seed).head.weight).all())


def test_a_new_version_replaces_a_used_head_whole(store: CountingStore, registry: HeadRegistry) -> None:
    """Weights and entry change together; whoever holds the old head keeps it as it is."""
    first = put(store)
    registry.refresh()
    before = registry.get("cups")
    second = put(store, seed=1)
    assert registry.get("cups") is before
    registry.refresh()
    after = registry.peek("cups")
    assert after is not None
    assert (before.entry, after.entry) == (first, second)
    assert is_taught(before, 0)
    assert is_taught(after, 1)
    store.rollback("cups", owner="ann")
    registry.refresh()
    assert is_taught(registry.get("cups"), 0)


def test_heads_load_when_they_are_used(store: CountingStore, registry: HeadRegistry) -> None:
    """A head that nobody asks for costs its entry only; an unchanged store is not even listed."""
    for name in ("a", "b", "c"):
        put(store, name)
    registry.refresh()
    assert [entry.name for entry in registry.entries()] == ["a", "b", "c"]
    assert (store.loaded, store.read, registry.peek("b")) == (0, 3, None)
    assert registry.get("b") is registry.get("b") is registry.peek("b")
    for _ in range(5):
        registry.refresh()
    assert (store.loaded, store.listed, store.read) == (1, 1, 3)
    put(store, "b", seed=1)
    put(store, "c", seed=1)
    registry.refresh()
    assert (store.loaded, store.listed, store.read) == (2, 2, 5)
    assert is_taught(registry.get("c"), 1)


def test_two_changes_within_one_tick_of_the_clock(store: CountingStore) -> None:
    """The second change may leave the same time on the folder; it is seen although the first was seen already."""
    registry = HeadRegistry(store)
    put(store)
    registry.refresh()
    stamp = store.stamp()
    put(store, seed=1)
    os.utime(store.folder / "pointers", ns=(stamp, stamp))
    registry.refresh()
    assert is_taught(registry.get("cups"), 1)


def test_deleted_heads_leave_memory(store: CountingStore, registry: HeadRegistry) -> None:
    put(store)
    registry.refresh()
    registry.get("cups")
    store.delete("cups", owner="ann")
    registry.refresh()
    for use in (registry.get, registry.peek, registry.entry):
        with pytest.raises(UnknownHeadError):
            use("cups")
    assert registry.entries() == []


def test_a_head_made_again_is_another_head(store: CountingStore, registry: HeadRegistry) -> None:
    """Deleted and written between two looks: the new one serves."""
    put(store)
    registry.refresh()
    registry.get("cups")
    store.delete("cups", owner="ann")
    put(store, seed=1)
    registry.refresh()
    assert is_taught(registry.get("cups"), 1)


def test_memory_is_bounded(store: CountingStore) -> None:
    """The head that was not used for longest leaves; it loads again when it is used."""
    size = unfitted(CUPS).head.bytes
    registry = HeadRegistry(store, max_bytes=2 * size)
    for name in ("a", "b", "c"):
        put(store, name)
    registry.refresh()
    for name in ("a", "b", "a", "c"):
        registry.get(name)
    assert [registry.peek(name) is not None for name in ("a", "b", "c")] == [True, False, True]
    assert is_taught(registry.get("b"), 0)


@pytest.mark.parametrize("is_used", [True, False])
def test_a_damaged_version_never_serves(store: CountingStore, registry: HeadRegistry, is_used: bool) -> None:
    """The version before serves, on this replica and on all others."""
    put(store)
    registry.refresh()
    if is_used:
        registry.get("cups")
    second = put(store, seed=1)
    (store.folder / "versions" / "cups" / second.version / "head.safetensors").write_bytes(b"\0")
    registry.refresh()
    assert is_taught(registry.get("cups"), 0)
    assert registry.entry("cups") == store.entry("cups") != second


def test_damage_beyond_repair_is_an_error_of_that_head_only(store: CountingStore, registry: HeadRegistry) -> None:
    put(store, "sound")
    version = put(store).version
    (store.folder / "versions" / "cups" / version / "head.json").unlink()
    registry.refresh()
    with pytest.raises(HeadDamagedError, match="teach it again"):
        registry.get("cups")
    assert is_taught(registry.get("sound"), 0)


def test_a_disk_that_is_gone_for_a_while(
    store: CountingStore, registry: HeadRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded heads serve on, others get 503, and the change is taken when the disk is back."""
    put(store)
    put(store, "other")
    registry.refresh()
    registry.get("cups")
    put(store, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", _no_disk)
        registry.refresh()
        assert is_taught(registry.get("cups"), 0)
        with pytest.raises(NotReadyError, match="retry later"):
            registry.get("other")
    registry.refresh()
    assert is_taught(registry.get("cups"), 1)
    assert is_taught(registry.get("other"), 0)


def test_the_thread_starts_without_a_folder_and_survives_errors(
    store: CountingStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder may come later; start and stop leave no thread."""
    registry = HeadRegistry(store, poll_s=0.001)
    store.folder.parent.joinpath("heads").write_text("not a folder")
    with caplog.at_level(logging.ERROR, logger="serve_app"):
        registry.start()
    assert "stay as they are" in caplog.text
    store.folder.unlink()
    put(store)
    while not registry.entries():
        time.sleep(0.001)
    assert is_taught(registry.get("cups"), 0)
    registry.stop()
    assert not registry._thread.is_alive()


def test_a_thousand_heads_cost_little(store: CountingStore, tmp_path: Path) -> None:
    """Start and looks read no weights: 1000 entries, then one file for one change."""
    entry = put(store, "h0")
    for number in range(1, 1000):
        name = f"h{number}"
        (store.folder / "pointers" / f"{name}.json").write_text(
            entry.model_copy(update={"name": name}).model_dump_json()
        )
        shutil.copytree(store.folder / "versions" / "h0", store.folder / "versions" / name)
    registry = HeadRegistry(store, clock=lambda: time.time() + 60)
    registry.refresh()
    assert (len(registry.entries()), store.read, store.loaded) == (1000, 1000, 0)
    put(store, "h7", seed=1)
    registry.refresh()
    assert (store.read, store.loaded) == (1001, 0)


def _no_disk(_path: Path) -> bytes:
    raise OSError(5, "Input/output error")
