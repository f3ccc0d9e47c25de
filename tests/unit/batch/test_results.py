"""The folder of results after a power cut: what is empty or cut is computed again, and no row is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.batch.export import MEDIA_TYPES, Format, stream
from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.results import LOST, ResultsFolder
from serve_app.config import EngineConfig, LimitsConfig, WeightsConfig
from serve_app.errors import SourceError, SourceUnavailableError
from serve_app.files import CorruptFileError
from serve_app.inference.card import load_card
from tests.support.faults import POWER_CUT, WRONG_JSON, DiskRecorder, emptied, full_disk

NAMES = [f"{n}.jpg" for n in range(5)]
SHARDS = [NAMES[:2], NAMES[2:4], NAMES[4:]]
COMPLETE = {0: 2, 1: 2, 2: 1}  # images by shard


def config(out: Path, **changed: Any) -> BatchJobConfig:
    return BatchJobConfig(source="photos", out=str(out)).model_copy(update=changed)


def begin(job: BatchJobConfig, names: list[str] = NAMES) -> dict[str, Any]:
    return ResultsFolder(job.out).begin(job, load_card(job.weights), names, 2)


def write(out: Path, shard: int) -> None:
    empty = dict.fromkeys(("labels", "scores", "class_ids", "margin", "entropy"))
    rows = [{"path": name, "error": "e", "detail": "d", "version": "v", **empty} for name in SHARDS[shard]]
    ResultsFolder(str(out)).write_part(shard, rows)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Complete results of five images in three shards."""
    folder = tmp_path / "out"
    begin(config(folder))
    for shard in COMPLETE:
        write(folder, shard)
    ResultsFolder(str(folder)).write_json("summary.json", {})
    return folder


def completed(out: Path) -> dict[int, int]:
    return {shard.shard: shard.images for shard in ResultsFolder(str(out)).completed_shards()}


def test_power_cut_empties_any_file(out: Path) -> None:
    """Every file in turn: the next run starts, computes what is missing, and has one row per image."""
    for path in emptied(out):
        manifest = begin(config(out))
        assert (manifest["images"], manifest["shards"]) == (5, 3)
        for shard in COMPLETE.keys() - completed(out).keys():
            write(out, shard)
        assert completed(out) == COMPLETE, path
        rows = json.loads(b"".join(stream(ResultsFolder(str(out)), "json", "all", 1)))
        assert [row["path"] for row in rows] == NAMES, path


@pytest.mark.parametrize("content", [*POWER_CUT, b"PAR1", b"PAR1" + b"\0" * 500 + b"PAR1"])
def test_damaged_part_is_missing(out: Path, content: bytes) -> None:
    """Empty, zeros, cut or with a broken footer: only that shard is computed again."""
    part = out / "parts" / "000001.parquet"
    part.write_bytes(content)
    assert completed(out) == {0: 2, 2: 1}
    with pytest.raises(CorruptFileError):
        ResultsFolder(str(out)).read_part(str(part))
    part.write_bytes(b"")
    write(out, 1)
    assert completed(out) == COMPLETE


def test_part_that_was_cut_anywhere_is_missing(out: Path) -> None:
    part = out / "parts" / "000001.parquet"
    whole = part.read_bytes()
    for length in range(0, len(whole), 97):
        part.write_bytes(whole[:length])
        assert completed(out) == {0: 2, 2: 1}, length


@pytest.mark.parametrize("content", [*WRONG_JSON, b"{}"])
def test_results_without_a_manifest_start_again(out: Path, content: bytes) -> None:
    """Parts of an unknown listing are not mixed with those of the new one."""
    (out / "manifest.json").write_bytes(content)
    assert begin(config(out), list(reversed(NAMES)))["shards"] == 3
    assert completed(out) == {}
    assert ResultsFolder(str(out)).shard_names(0) == ["4.jpg", "3.jpg"]


def test_listing_of_another_manifest_starts_again(out: Path) -> None:
    """A power cut between two listings can leave files that do not belong together."""
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"shards": 7}))
    assert begin(config(out))["shards"] == 3
    assert completed(out) == {}


def test_files_of_others_stay(out: Path) -> None:
    (out / "manifest.json").unlink()
    (out / "parts" / "mine.parquet").write_bytes(b"x")
    begin(config(out))
    assert [path.name for path in (out / "parts").iterdir()] == ["mine.parquet"]


@pytest.mark.parametrize("format", list(MEDIA_TYPES))
@pytest.mark.parametrize("damage", ["empty", "gone"])
def test_export_names_lost_rows(out: Path, format: Format, damage: str) -> None:
    """Complete results have a row per image also where a part is lost; others skip shards that were not classified."""
    part = out / "parts" / "000001.parquet"
    part.write_bytes(b"") if damage == "empty" else part.unlink()
    results = ResultsFolder(str(out))
    assert b"".join(stream(results, format, "all", 1, is_complete=True))
    rows = json.loads(b"".join(stream(results, "json", "all", 1, is_complete=True)))
    assert [row["path"] for row in rows] == NAMES
    assert rows[2]["error"] == {"code": "unreadable", "detail": LOST}
    rows = json.loads(b"".join(stream(results, "json", "all", 1, is_complete=False)))
    assert [row["path"] for row in rows] == [*SHARDS[0], *SHARDS[2]]


def test_storage_that_fails_is_no_damaged_part(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that cannot be read now is not computed again, nor reported as lost."""
    monkeypatch.setattr("serve_app.batch.results.pq.read_metadata", full_disk)
    monkeypatch.setattr("serve_app.batch.results.pq.read_table", full_disk)
    with pytest.raises(OSError, match="No space left"):
        completed(out)
    with pytest.raises(OSError, match="No space left"):
        list(stream(ResultsFolder(str(out)), "json", "all", 1, is_complete=True))


@pytest.mark.parametrize(
    "changed",
    [
        {"engine": EngineConfig(precision="int8")},
        {"engine": EngineConfig(runtime="torch")},
        {"limits": LimitsConfig(max_pixels=1000)},
        {"limits": LimitsConfig(max_image_bytes=9)},
        {"top_k": 3},
        {"embed": True},
        {"source": "others"},
    ],
)
def test_results_of_other_settings_are_refused(out: Path, changed: dict[str, Any]) -> None:
    """A run that resumes uses the settings that it started with, or another folder."""
    with pytest.raises(SourceError, match=f"has results of {next(iter(changed))} "):
        begin(config(out, **changed))
    begin(config(out))


def test_manifest_of_another_version_resumes(out: Path) -> None:
    """Older versions wrote neither engine nor limits nor embed; a newer version may have added fields."""
    manifest = json.loads((out / "manifest.json").read_text())
    old = {key: value for key, value in manifest.items() if key not in ("engine", "limits", "embed")}
    new = {**manifest, "new": 1, "engine": {**manifest["engine"], "new": 1}}
    new["limits"] = {"max_pixels": manifest["limits"]["max_pixels"], "new": 1}
    for content in (old, new):
        (out / "manifest.json").write_text(json.dumps(content))
        begin(config(out))
        assert completed(out) == COMPLETE


def test_results_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is fsynced before it gets its name, and its folder after."""
    disk = DiskRecorder(monkeypatch)
    begin(config(tmp_path / "out"))
    write(tmp_path / "out", 0)
    ResultsFolder(str(tmp_path / "out")).write_json("summary.json", {})
    assert disk.renamed == {"listing.parquet", "manifest.json", "000000.parquet", "summary.json"}
    assert (disk.unsafe, disk.unnamed) == ([], [])


def test_full_disk_is_an_error_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.batch.results.exclusive_lock", full_disk)
    with pytest.raises(SourceUnavailableError, match="No space left"), ResultsFolder(str(tmp_path)).lock():
        pass


def test_lost_names_that_are_not_utf8(tmp_path: Path, weights: WeightsConfig) -> None:
    """A lost row's path is written as a classified image's is."""
    job = config(tmp_path / "out", weights=weights)
    begin(job, ["caf\udce9.jpg"])
    (row,) = json.loads(b"".join(stream(ResultsFolder(job.out), "json", "all", 1, is_complete=True)))
    assert row["path"] == "caf�.jpg"
