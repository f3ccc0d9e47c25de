"""`serve-app predict`: one row per image after any crash, from every kind of source, with errors as rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from serve_app.batch.export import stream
from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.results import BusyError, ResultsFolder
from serve_app.batch.sources import open_source
from serve_app.batch.worker import Decoder, Predictor
from serve_app.cli.main import app
from serve_app.config import LimitsConfig, WeightsConfig
from serve_app.errors import HeadBackboneChangedError
from serve_app.heads.store import HeadStore
from serve_app.heads.versions import read_head
from serve_app.inference.card import load_card
from serve_app.messages import ClassifyRequest
from serve_app.preprocessing.transform import preprocess
from tests.support.bucket import bucket as s3_bucket
from tests.support.heads import examples_around, unfitted
from tests.support.local_service import load
from tests.support.paths import ROOT
from tests.support.photos import make_photo

IMAGES, BROKEN, SHARD = 200, 10, 10


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sub-folders; every twentieth file is truncated."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(IMAGES):
        path = folder / f"{n % 7}" / f"{n:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        photo = make_photo(n, 64, 48)
        path.write_bytes(photo[: len(photo) // 2] if n % (IMAGES // BROKEN) == 0 else photo)
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


def read_rows(out: Path) -> list[dict[str, Any]]:
    return [row for part in sorted((out / "parts").iterdir()) for row in pq.read_table(part).to_pylist()]


def predict_here(job: BatchJobConfig) -> ResultsFolder:
    """Run a job without Ray, one shard after the other."""
    results = ResultsFolder(job.out)
    manifest = results.begin(job, load_card(job.weights), open_source(job.source).names(), shard_size=8)
    decode, classify = Decoder(job), Predictor(job)
    for shard in range(manifest["shards"]):
        classify(decode(shard))
    return results


def test_killed_run_is_resumed(photos: Path, tmp_path: Path) -> None:
    """After SIGKILL the same command classifies only the rest, and each image has one row.

    A named pipe stands in for an image in the middle: the worker that opens it waits there until the run is killed.
    """
    out, job = tmp_path / "out", BatchJobConfig(source=str(photos), out=str(tmp_path / "out"))
    names = sorted(open_source(job.source).names())
    ResultsFolder(job.out).begin(job, load_card(job.weights), names, SHARD)
    middle, photo = photos / names[IMAGES // 2], tmp_path / "photo.jpg"
    middle.rename(photo)
    os.mkfifo(middle)
    arguments = ["predict", str(photos), str(out), "--workers", "1"]
    command = [sys.executable, "-m", "serve_app", *arguments]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with middle.open("wb"):  # returns once the worker has opened the pipe
        first.send_signal(signal.SIGKILL)
        first.wait()
        photo.replace(middle)
        kept = {part.name: part.stat().st_mtime_ns for part in (out / "parts").glob("[!.]*")}
        assert 0 < len(kept) < IMAGES / SHARD

        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    summary = json.loads(second.stdout)
    rows = read_rows(out)
    assert sorted(row["path"] for row in rows) == names
    assert summary["resumed"] == SHARD * len(kept)
    assert all((out / "parts" / name).stat().st_mtime_ns == modified for name, modified in kept.items())
    assert (summary["images"], summary["failed"]) == (IMAGES, BROKEN)
    assert summary["errors"] == {"invalid_image": BROKEN}
    assert {row["error"] for row in rows} == {None, "invalid_image"}
    assert all((row["labels"] is None) == (row["error"] is not None) for row in rows)
    assert f"{IMAGES}/{IMAGES}" in second.stderr  # the progress bar

    third = CliRunner().invoke(app, arguments)
    assert json.loads(third.stdout)["resumed"] == IMAGES


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere", "out"), "nowhere: no such folder or zip, nor a pattern"),
        (("empty", "out"), "empty holds no files"),
        (("file.txt", "out"), "file.txt: cannot be read as a zip"),
        (("photos", "used"), "has results of"),
        (("photos", "file.txt/out"), "cannot be written to"),
        (("photos", "out", "--weights", "resnet"), "unknown name; use imagenet"),
        (("photos", "out", "--engine", '{"runtim": "torch"}'), "runtim: unknown name"),
    ],
    ids=["no source", "empty source", "no zip", "other results", "no folder", "weights", "engine"],
)
def test_wrong_arguments_end_with_one_sentence(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sentence: str
) -> None:
    """Exit code 2, one line on stderr that names the argument, nothing on stdout."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    other = BatchJobConfig(source="elsewhere", out=str(tmp_path / "used"))
    ResultsFolder(other.out).begin(other, load_card(other.weights), ["a"], 8)
    ended = CliRunner().invoke(app, ["predict", *arguments])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_arguments_are_checked_before_heavy_imports(tmp_path: Path) -> None:
    """A wrong argument shows at once: neither torch nor Ray is imported for it."""
    program = (
        "import sys; from serve_app.cli.main import app\n"
        f"try: app(['predict', 'nowhere', {str(tmp_path / 'out')!r}])\n"
        "except SystemExit as ended: print(ended.code, {'torch', 'ray'} & sys.modules.keys())"
    )
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout == "2 set()\n"


def test_sources_name_the_same_images(photos: Path, tmp_path: Path) -> None:
    """Folder, pattern and zip list the same files, without hidden files and macOS's shadow files."""
    archive = tmp_path / "photos.zip"
    paths = sorted(photos.rglob("*.jpg"))
    with zipfile.ZipFile(archive, "w") as into:
        for path in paths:
            into.write(path, path.relative_to(photos))
        into.writestr("__MACOSX/0/._000.jpg", b"x")
        into.mkdir("nothing")
    below = [str(path.relative_to(photos)) for path in paths]
    folder, pattern, zipped = (open_source(str(source)) for source in (photos, photos / "**" / "*.jpg", archive))
    assert sorted(folder.names()) == sorted(zipped.names()) == below
    assert sorted(pattern.names()) == [str(path) for path in paths]
    for source, name in ((folder, below[3]), (pattern, str(paths[3])), (zipped, below[3])):
        assert source.read(name, 10_000) == paths[3].read_bytes()
        assert len(source.read(name, 99)) == 100


def test_odd_names_and_files_have_rows(weights: WeightsConfig, tmp_path: Path) -> None:
    """A name that is not UTF-8, an unsupported file, a file over the limit and a file that vanished: a row for each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(make_photo(0, 64, 48))
    (folder / "large.jpg").write_bytes(bytes(20_000))
    (folder / "gone.jpg").write_bytes(make_photo())
    (folder / "text.txt").write_text("hello")
    limits = LimitsConfig(max_image_bytes=19_999)
    job = BatchJobConfig(source=str(folder), out=str(tmp_path / "out"), weights=weights, top_k=3, limits=limits)
    results = ResultsFolder(job.out)
    results.begin(job, load_card(weights), list(open_source(job.source).names()), 8)
    (folder / "gone.jpg").unlink()
    completed = Predictor(job)(Decoder(job)(0))
    rows = {row["path"]: row for row in read_rows(tmp_path / "out")}
    assert completed.errors == {"too_large": 1, "unreadable": 1, "unsupported_image": 1}
    assert rows["gone.jpg"]["detail"] == "cannot be read: No such file or directory"
    assert len(rows["caf�.jpg"]["labels"]) == 3
    assert results.completed_shards() == [completed]


def test_embed_adds_the_embeddings_of_the_service(weights: WeightsConfig, tmp_path: Path) -> None:
    """A row has what the engine gives its photo; a failed image has none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(make_photo(1))
    (folder / "b.txt").write_text("hello")
    job = BatchJobConfig(source=str(folder), out=str(tmp_path / "out"), weights=weights, embed=True)
    predict_here(job)
    photo, text = sorted(read_rows(tmp_path / "out"), key=lambda row: str(row["path"]))
    assert text["embedding"] is None
    engine, card = load(weights)
    (expected,) = engine.classify(
        [ClassifyRequest(preprocess(make_photo(1), card.transform, 10**6).pixels, 1, features="pooled")]
    )
    np.testing.assert_allclose(photo["embedding"], expected.embedding, rtol=1e-4, atol=1e-5)


def test_a_head_names_its_classes_in_place_of_the_models(weights: WeightsConfig, tmp_path: Path) -> None:
    """Rows have what the stored head says about the engine's embedding; a head of other weights is refused."""
    engine, card = load(weights)
    store = HeadStore(tmp_path / "heads")
    fitted = unfitted(examples_around(("mine", "others"), 3))
    head = replace(fitted.head, backbone=card.ref)
    entry = store.write("cups", fitted._replace(head=head), examples_around(("mine", "others"), 3), owner=None)
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(make_photo(1))
    (folder / "b.txt").write_text("hello")
    version = store.copy(entry, tmp_path / "head")
    predict_here(BatchJobConfig(source=str(folder), out=str(tmp_path / "out"), weights=weights, head=str(version)))
    photo, text = sorted(read_rows(tmp_path / "out"), key=lambda row: str(row["path"]))
    (expected,) = engine.classify(
        [ClassifyRequest(preprocess(make_photo(1), card.transform, 10**6).pixels, 1, features="pooled")]
    )
    assert expected.embedding is not None
    said = head.classify(expected.embedding, 2)
    assert (photo["labels"], photo["none_of_these"]) == (list(said.labels), said.none_of_these)
    np.testing.assert_allclose(photo["scores"], said.scores, atol=1e-3)
    assert (text["labels"], text["none_of_these"]) == (None, None)
    text_of_rows = b"".join(stream(ResultsFolder(str(tmp_path / "out")), "json", "ok", 2))
    assert json.loads(text_of_rows)[0]["none_of_these"] == said.none_of_these
    with pytest.raises(HeadBackboneChangedError, match="taught on weights"):
        read_head(version, card.ref.model_copy(update={"sha256": "0" * 64}))


@pytest.fixture
def bucket() -> Iterator[Any]:
    """A client of a local S3 server with an empty bucket."""
    with s3_bucket("photos") as client:
        yield client


def test_bucket_gives_the_same_results_as_a_folder(bucket: Any, weights: WeightsConfig, tmp_path: Path) -> None:
    """A job from and to s3:// lists any depth, reads in order before it classifies, and finds its own results."""
    for n in range(20):
        bucket.put_object(Bucket="photos", Key=f"in/{n % 3}/{n:02}.jpg", Body=make_photo(n, 64, 48))
    bucket.put_object(Bucket="photos", Key="in/broken.jpg", Body=b"text")
    folder = tmp_path / "in"
    for n in range(20):
        (folder / f"{n % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"{n % 3}" / f"{n:02}.jpg").write_bytes(make_photo(n, 64, 48))
    remote = predict_here(BatchJobConfig(source="s3://photos/in", out="s3://photos/out", weights=weights))
    local = predict_here(BatchJobConfig(source=str(folder), out=str(tmp_path / "out"), weights=weights))
    rows = {row["path"]: row for part in remote.parts() for row in remote.read_part(part).to_pylist()}
    assert rows.pop("broken.jpg")["error"] == "unsupported_image"
    expected = {row["path"]: row for part in local.parts() for row in local.read_part(part).to_pylist()}
    assert rows.keys() == expected.keys()
    for path, row in expected.items():
        assert rows[path]["labels"] == row["labels"]
        assert rows[path]["scores"] == pytest.approx(row["scores"], abs=1e-3)
    assert sum(shard.images for shard in ResultsFolder("s3://photos/out").completed_shards()) == 21


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """A second run on the same results is refused while the first is in progress."""
    first, second = ResultsFolder(str(tmp_path)), ResultsFolder(str(tmp_path))
    with first.lock(), pytest.raises(BusyError, match="another run writes to"), second.lock():
        pass
    with second.lock():
        pass
