"""SIGKILL, a power cut and bit rot: the version before or the new one serves, never neither and never half of one."""

from __future__ import annotations

import builtins
import io
import json
import os
import runpy
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.errors import HeadDamagedError, HeadFormatError, UnknownHeadError
from serve_app.heads.store import HeadStore
from serve_app.heads.stored import version_name, version_number
from serve_app.heads_config import HeadsConfig
from tests.support.faults import POWER_CUT, WRONG_JSON
from tests.support.heads import examples_around, suggestion, unfitted
from tests.support.power_cut import RECORDER, cut, recording

CUPS = [replace(each, kept_photo=True) for each in examples_around(["my cup", "other cup"], 2)]
PHOTOS = {each.id: each.id.encode() for each in CUPS}
STEPS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "link", "open")  # of os; each changes the disk
KILLED, DONE, FAILED = 9, 0, 1


def put(store: HeadStore, seed: int) -> str:
    return store.write("cups", unfitted(CUPS, seed), CUPS, owner="ann", photos={} if seed in (1, 2) else PHOTOS).version


CHANGES: dict[str, Callable[[HeadStore], object]] = {
    "write": lambda store: put(store, 2),
    "write and forget": lambda store: store.write("cups", unfitted(CUPS[1:], 2), CUPS[1:], owner="ann", forget=PHOTOS),
    "rollback": lambda store: store.rollback("cups", owner="ann"),
    "delete": lambda store: store.delete("cups", owner="ann"),
}


def killed_at(step: int, change: Callable[[], object], log: Path) -> int:
    """Run a change in a child process that ends without a word before its n-th step on the disk; return its status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.environ |= recording(log)
        runpy.run_path(str(RECORDER / "sitecustomize.py"))
        left = iter(range(step))

        def counting(function: Callable[..., object]) -> Callable[..., object]:
            def count(*arguments: object, **options: object) -> object:
                if next(left, None) is None:
                    os._exit(KILLED)
                return function(*arguments, **options)

            return count

        for name in STEPS:
            setattr(os, name, counting(getattr(os, name)))
        io.open = builtins.open = counting(builtins.open)  # type: ignore[assignment]  # pathlib writes with io.open
        change()
        os._exit(DONE)
    finally:
        os._exit(FAILED)


def prepare(folder: Path) -> list[str]:
    """Write two versions; return their names."""
    store = HeadStore(folder)
    return [put(store, 0), put(store, 1)]


@pytest.mark.parametrize("has_power_cut", [False, True], ids=["SIGKILL", "power cut"])
@pytest.mark.parametrize("change", CHANGES)
def test_killed_before_any_step(tmp_path: Path, change: str, has_power_cut: bool) -> None:
    """Whichever step of a change is the last one: the state before or after it is whole, and the next change works."""
    prepare(tmp_path / "prepared")
    outcomes = []
    for step in range(200):
        folder, log = tmp_path / f"heads-{step}", tmp_path / f"log-{step}"
        shutil.copytree(tmp_path / "prepared", folder)
        log.touch()
        start_ns = time.time_ns()
        status = killed_at(step, lambda folder=folder: CHANGES[change](HeadStore(folder)), log)  # type: ignore[misc]
        assert status in (KILLED, DONE), f"step {step}: the change failed"
        if has_power_cut:
            cut(folder, log, start_ns)
        outcomes.append(serving_version(HeadStore(folder)))
        HeadStore(folder).sweep()
        assert put(HeadStore(folder), 3) == serving_version(HeadStore(folder))
        if status == DONE:
            break
    numbers = [version_number(version) if version else None for version in outcomes]
    after = {"rollback": 1, "delete": None}.get(change, 3)
    assert set(numbers) == {2, after}
    assert numbers[-1] == after, "once a change has returned, it stays"


def serving_version(store: HeadStore) -> str | None:
    """Return which version serves, None without the head, after checking that every kept version is whole."""
    try:
        serving = store.read("cups")
    except UnknownHeadError:
        return None
    assert not (store.folder / "quarantine").exists(), "nothing was damaged, so nothing is repaired"
    assert all(store.read("cups", version) for version in store.entry("cups").versions)
    if CUPS[1].id in {each.id for each in serving.examples}:
        assert store.photo("cups", CUPS[1].id) == PHOTOS[CUPS[1].id]
    return serving.entry.version


def suggest_two(store: HeadStore) -> None:
    sent = [suggestion(each, kept_photo=True) for each in CUPS[:2]]
    store.suggest("cups", sent, {each.example.id: b"a photo" for each in sent}, HeadsConfig(folder="heads"))


@pytest.mark.parametrize("has_power_cut", [False, True], ids=["SIGKILL", "power cut"])
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)], ids=["suggest", "decide"])
def test_suggestions_are_whole_or_absent(tmp_path: Path, before: int, after: int, has_power_cut: bool) -> None:
    """Whichever step is the last one; once a change has returned, it stays."""
    prepare(tmp_path / "prepared")
    if before:
        suggest_two(HeadStore(tmp_path / "prepared"))

    def change(store: HeadStore) -> None:
        if before:
            store.drop_suggestions("cups", [each.example.id for each in store.suggestions("cups")])
        else:
            suggest_two(store)

    for step in range(200):
        folder, log = tmp_path / f"heads-{step}", tmp_path / f"log-{step}"
        shutil.copytree(tmp_path / "prepared", folder)
        log.touch()
        start_ns = time.time_ns()
        status = killed_at(step, lambda folder=folder: change(HeadStore(folder)), log)  # type: ignore[misc]
        assert status in (KILLED, DONE), f"step {step}: the change failed"
        if has_power_cut:
            cut(folder, log, start_ns)
        store = HeadStore(folder)
        waiting = store.suggestions("cups")
        assert len(waiting) == store.suggestion_counts()["cups"]
        assert all(store.suggested_photo("cups", each.example.id) == b"a photo" for each in waiting)
        if status == DONE:
            break
    assert len(waiting) == after


def test_a_deletion_that_was_killed_ends_with_the_sweep(tmp_path: Path) -> None:
    """Embeddings are personal data: once the pointer is gone, a sweep leaves no file of the head."""
    prepare(tmp_path)
    (tmp_path / "pointers" / "cups.json").unlink()
    HeadStore(tmp_path).sweep()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def damage(folder: Path) -> Iterator[Path]:
    """Damage each file of a version in turn, in several ways, and restore it."""
    for path in (folder / "head.json", folder / "head.safetensors"):
        before = path.read_bytes()
        flipped = bytearray(before)
        flipped[len(flipped) // 2] ^= 1
        for content in (*POWER_CUT, bytes(flipped), before[:-1]):
            path.write_bytes(content)
            yield path
        path.write_bytes(before)
        path.unlink()
        yield path
        path.write_bytes(before)


def test_a_damaged_version_is_quarantined_and_the_one_before_serves(tmp_path: Path) -> None:
    """A single flipped bit in any file is noticed."""
    number = 0
    prepare(tmp_path / "prepared")
    second = HeadStore(tmp_path / "prepared").entry("cups").version
    for _ in damage(tmp_path / "prepared" / "versions" / "cups" / second):
        number += 1
        store = HeadStore(Path(shutil.copytree(tmp_path / "prepared", tmp_path / str(number))))
        before = store.entry("cups")
        served = store.read("cups").entry
        assert (before.version, served.version) == (second, before.versions[0])
        assert served == store.entry("cups")
        assert served.versions == (served.version,)
        assert served.etag != before.etag
        (quarantined,) = (store.folder / "quarantine" / "cups").iterdir()
        assert quarantined.name.startswith(second)
        assert put(store, 5) == store.entry("cups").version
    assert number == 10


def test_nothing_sound_is_left(tmp_path: Path) -> None:
    """The error says to teach the head again, which works; its owner stays the owner."""
    prepare(tmp_path)
    store = HeadStore(tmp_path)
    for version in store.entry("cups").versions:
        (tmp_path / "versions" / "cups" / version / "head.safetensors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(HeadDamagedError, match="teach it again"):
            store.read("cups")
    assert put(store, 4) == store.read("cups").entry.version


@pytest.mark.parametrize("content", WRONG_JSON)
def test_a_damaged_pointer_is_made_again(tmp_path: Path, content: bytes) -> None:
    """The newest version serves, owned by the same key; it is shared with nobody until its owner says so."""
    _, second = prepare(tmp_path)
    store = HeadStore(tmp_path)
    store.set_public("cups", True, owner="ann")
    (tmp_path / "pointers" / "cups.json").write_bytes(content)
    (entry,) = store.entries()
    assert (entry.version, entry.owner, entry.public) == (second, "ann", False)
    assert store.read("cups").entry == entry


def test_a_newer_version_of_the_service_wrote_it(tmp_path: Path) -> None:
    """Its files stay where they are, so that an upgrade reads them; fields that were added are ignored."""
    prepare(tmp_path)
    store = HeadStore(tmp_path)
    entry = store.entry("cups")
    for change in ({"new": 1}, {"abstain_below": "automatic"}):
        folder = tmp_path / "versions" / "cups" / entry.version
        content = json.dumps(json.loads((folder / "head.json").read_text()) | change).encode()
        (folder / "head.json").write_bytes(content)
        version = version_name(version_number(entry.version), content)
        folder.rename(folder.with_name(version))
        moved = entry.model_copy(update={"version": version, "versions": (*entry.versions[:-1], version)})
        (tmp_path / "pointers" / "cups.json").write_text(moved.model_dump_json())
        entry = moved
        if "new" in change:
            assert store.read("cups").entry == entry
    with pytest.raises(HeadFormatError, match="update the service"):
        store.read("cups")
    assert store.entry("cups") == entry
    assert (tmp_path / "versions" / "cups" / entry.version).is_dir()
