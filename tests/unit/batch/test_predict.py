"""Batch prediction: every image once whatever happens, from every kind of source, with errors as rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from serve_app.batch import predict as batch_predict
from serve_app.batch.results import BusyError, Job, Output
from serve_app.batch.sources import open_source
from serve_app.batch.worker import Decoder, Predictor
from serve_app.config import LimitsConfig, WeightsConfig
from serve_app.inference.card import load_card
from tests.conftest import make_photo
from tests.support.paths import ROOT

IMAGES, BROKEN = 200, 10


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sub-folders; every twentieth file is cut short."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(IMAGES):
        path = folder / f"{n % 7}" / f"{n:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        photo = make_photo(n, 64, 48)
        path.write_bytes(photo[: len(photo) // 2] if n % (IMAGES // BROKEN) == 0 else photo)
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "serve_app.batch.predict", *map(str, arguments)]


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for part in sorted((out / "parts").iterdir()) for row in pq.read_table(part).to_pylist()]


def predict(job: Job, shard: int = 8) -> Output:
    """All shards, one after the other, without Ray."""
    output = Output(job.out)
    manifest = output.begin(job, load_card(job.weights), open_source(job.source).names(), shard)
    decode, classify = Decoder(job), Predictor(job)
    for number in range(manifest["shards"]):
        classify(decode(number))
    return output


def test_killed_in_the_middle_it_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Kill -9 of the command, then the same command: each image has one row, and what was done is not done again."""
    arguments = command(photos, tmp_path / "out", "--shard", "10", "--workers", "1")
    parts = tmp_path / "out" / "parts"
    first = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (parts.exists() and list(parts.glob("[!.]*"))):
        assert first.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {part.name: part.stat().st_mtime_ns for part in parts.glob("[!.]*")}
    assert len(kept) < IMAGES / 10, "it had ended before it was killed"

    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    summary = json.loads(done.stdout)
    found = rows(tmp_path / "out")
    expected = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    assert sorted(row["path"] for row in found) == expected
    assert summary["resumed"] >= 10 * len(kept) > 0
    assert all((parts / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert (summary["images"], summary["failed"]) == (IMAGES, BROKEN)
    assert summary["errors"] == {"invalid_image": BROKEN}
    assert {row["error"] for row in found} == {None, "invalid_image"}
    assert all((row["labels"] is None) == (row["error"] is not None) for row in found)
    assert f"{IMAGES}/{IMAGES}" in done.stderr  # the bar

    monkeypatch.setattr(sys, "argv", arguments[2:])
    batch_predict.main()
    assert json.loads(capfd.readouterr().out)["resumed"] == IMAGES


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere", "out"), "nowhere: no such folder or zip, nor a pattern"),
        (("empty", "out"), "empty holds no files"),
        (("file.txt", "out"), "file.txt: cannot be read as a zip"),
        (("photos", "used"), "has results of"),
        (("photos", "file.txt/out"), "cannot be written to"),
        (("photos", "out", "--weights", "resnet"), "unknown name; use imagenet"),
        (("photos", "out", "--engine", '{"runtim": "mnn"}'), "runtim: unknown name"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_done_is_said_at_once(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    """Exit code 2 and one sentence."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    other = Job(source="elsewhere", out=str(tmp_path / "used"))
    Output(other.out).begin(other, load_card(other.weights), ["a"], 8)
    monkeypatch.setattr(sys, "argv", ["batch_predict", *arguments])
    with pytest.raises(SystemExit) as ended:
        batch_predict.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_sources_name_the_same_images(photos: Path, tmp_path: Path) -> None:
    """Folder, pattern and zip: the same files, without what a desktop adds."""
    archive = tmp_path / "photos.zip"
    paths = sorted(photos.rglob("*.jpg"))
    with zipfile.ZipFile(archive, "w") as into:
        for path in paths:
            into.write(path, path.relative_to(photos))
        into.writestr("__MACOSX/0/._000.jpg", b"x")
        into.mkdir("nothing")
    below = [str(path.relative_to(photos)) for path in paths]
    folder, pattern, zipped = (open_source(f"{each}") for each in (photos, photos / "**" / "*.jpg", archive))
    assert sorted(folder.names()) == sorted(zipped.names()) == below
    assert sorted(pattern.names()) == [str(path) for path in paths]
    for source, name in ((folder, below[3]), (pattern, str(paths[3])), (zipped, below[3])):
        assert source.read(name, 10_000) == paths[3].read_bytes()
        assert len(source.read(name, 99)) == 100


def test_odd_names_and_files(weights: WeightsConfig, tmp_path: Path) -> None:
    """A name that is no UTF-8, an unreadable file, one that is too large and one that vanished: each has its row."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(make_photo(0, 64, 48))
    (folder / "large.jpg").write_bytes(bytes(20_000))
    (folder / "gone.jpg").write_bytes(make_photo())
    (folder / "text.txt").write_text("hello")
    limits = LimitsConfig(max_image_bytes=19_999)
    job = Job(source=str(folder), out=str(tmp_path / "out"), weights=weights, top_k=3, limits=limits)
    names = list(open_source(job.source).names())
    output = Output(job.out)
    output.begin(job, load_card(weights), names, 8)
    (folder / "gone.jpg").unlink()
    done = Predictor(job)(Decoder(job)(0))
    found = {row["path"]: row for row in rows(tmp_path / "out")}
    assert done.errors == {"too_large": 1, "unreadable": 1, "unsupported_image": 1}
    assert found["gone.jpg"]["detail"] == "cannot be read: No such file or directory"
    assert len(found["caf�.jpg"]["labels"]) == 3
    assert output.done() == [done]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 on this machine."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    yield client
    server.stop()


def test_buckets(bucket: Any, weights: WeightsConfig, tmp_path: Path) -> None:
    """From s3:// to s3://: listed at any depth, read ahead in order, results there; a second run finds them."""
    for n in range(20):
        bucket.put_object(Bucket="photos", Key=f"in/{n % 3}/{n:02}.jpg", Body=make_photo(n, 64, 48))
    bucket.put_object(Bucket="photos", Key="in/broken.jpg", Body=b"text")
    local = tmp_path / "in"
    for n in range(20):
        (local / f"{n % 3}").mkdir(parents=True, exist_ok=True)
        (local / f"{n % 3}" / f"{n:02}.jpg").write_bytes(make_photo(n, 64, 48))
    there = predict(Job(source="s3://photos/in", out="s3://photos/out", weights=weights))
    here = predict(Job(source=str(local), out=str(tmp_path / "out"), weights=weights))
    found = {row["path"]: row for part in there.parts() for row in there.read(part).to_pylist()}
    assert found.pop("broken.jpg")["error"] == "unsupported_image"
    expected = {row["path"]: row for part in here.parts() for row in here.read(part).to_pylist()}
    assert found.keys() == expected.keys()
    for path, row in expected.items():
        assert found[path]["labels"] == row["labels"]
        assert found[path]["scores"] == pytest.approx(row["scores"], abs=1e-3)
    assert sum(part.images for part in Output("s3://photos/out").done()) == 21


def test_one_run_at_a_time(tmp_path: Path) -> None:
    first, second = Output(str(tmp_path)), Output(str(tmp_path))
    with first.alone(), pytest.raises(BusyError, match="another run is at work"), second.alone():
        pass
