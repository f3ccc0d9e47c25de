"""The folder of results: manifest, listing and parts; what makes a stopped run go on where it was.

    manifest.json         what was asked; there once the listing is complete
    listing.parquet       every image's name, as bytes; row group n is shard n
    parts/000012.parquet  a row for each image of shard 12; there whole or not at all
    summary.json          there once all parts are

The listing is made once: whatever happens to the source meanwhile, each of its images is in one shard, and each shard
is one part.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from serve_app.batch.sources import filesystem
from serve_app.config import EngineConfig, FrozenModel, LimitsConfig, WeightsConfig
from serve_app.errors import SourceError
from serve_app.files import whole
from serve_app.model_card import ModelCard

NAMES = pa.schema([("name", pa.binary())])
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("labels", pa.list_(pa.string())),  # best first
        ("scores", pa.list_(pa.float32())),
        ("class_ids", pa.list_(pa.int32())),
        ("margin", pa.float32()),
        ("entropy", pa.float32()),
        ("error", pa.string()),  # its code; null where there is an answer
        ("detail", pa.string()),
        ("version", pa.string()),  # of the weights
    ]
)
READERS = 16  # footers read at a time


class BusyError(SourceError):
    """Another run is at work on the same results."""


class Job(FrozenModel):
    """What is to be done with a source; everything that a worker has to know."""

    source: str
    out: str
    weights: WeightsConfig = WeightsConfig()
    engine: EngineConfig = EngineConfig()
    top_k: int = 10
    batch: int = 8
    limits: LimitsConfig = LimitsConfig()


class Done(NamedTuple):
    """A part that is written.

    Attributes:
        shard: Its number.
        images: How many rows it has.
        errors: How many of them failed, by code.
    """

    shard: int
    images: int
    errors: dict[str, int]


class Output:
    """Reads and writes the folder; in the command and in every worker."""

    def __init__(self, out: str) -> None:
        """Look at nothing yet.

        Args:
            out: An absolute path, or a bucket's prefix.
        """
        self._fs, path = filesystem(out)
        self._path = path.rstrip("/")
        self._local = isinstance(self._fs, fs.LocalFileSystem)
        self._listing: pq.ParquetFile | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs out, as far as that can be: not in a bucket.

        Raises:
            BusyError: Another run is at work here.
            SourceError: Nothing can be written.
        """
        if not self._local:
            yield
            return
        try:
            os.makedirs(self._path, exist_ok=True)
            lock = open(f"{self._path}/.lock", "w")  # noqa: SIM115 # held below
        except OSError as error:
            raise SourceError(f"{self._path}: cannot be written to ({error})") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(f"another run is at work on {self._path}: wait for its end") from None
            yield

    def begin(self, job: Job, card: ModelCard, names: Iterable[str], shard: int) -> dict[str, Any]:
        """Make the listing, or find that it was made.

        Args:
            job: What is to be done.
            card: Of its weights.
            names: Of the images; looked at only if there is no listing yet.
            shard: Images in a shard, if there is no listing yet.

        Returns:
            The manifest.

        Raises:
            SourceError: The folder has results of something else, or there are no images.
        """
        model = {**card.ref.model_dump(), "temperature": card.temperature}
        asked = {"source": job.source, "top_k": job.top_k, "model": model}
        if (found := self.read_json("manifest.json")) is not None:
            other = [f"{key} {found.get(key)!r}" for key in asked if found.get(key) != asked[key]]
            if other:
                raise SourceError(f"{self._path} has results of {', '.join(other)}: choose another folder")
            return found
        self._fs.create_dir(f"{self._path}/parts", recursive=True)
        images = self._list(names, shard)
        if images == 0:
            raise SourceError(f"{job.source} holds no files")
        manifest = {**asked, "images": images, "shard": shard, "shards": -(-images // shard)}
        self.write_json("manifest.json", manifest)
        return manifest

    def shard(self, number: int) -> list[str]:
        """The names in a shard."""
        if self._listing is None:
            self._listing = pq.ParquetFile(f"{self._path}/listing.parquet", filesystem=self._fs)
        return [os.fsdecode(name.as_py()) for name in self._listing.read_row_group(number)["name"]]

    def write_part(self, shard: int, rows: list[dict[str, Any]]) -> Done:
        """Write the rows of a shard, in one step."""
        errors = dict(Counter(row["error"] for row in rows if row["error"] is not None))
        schema = SCHEMA.with_metadata({"errors": json.dumps(errors)})
        with self._whole(f"parts/{shard:06d}.parquet") as path:
            pq.write_table(pa.Table.from_pylist(rows, schema), path, filesystem=self._fs, compression="zstd")
        return Done(shard, len(rows), errors)

    def parts(self) -> list[str]:
        """Paths of the parts that are there, in order."""
        found = self._fs.get_file_info(fs.FileSelector(f"{self._path}/parts", allow_not_found=True))
        return sorted(each.path for each in found if not each.base_name.startswith("."))

    def done(self) -> list[Done]:
        """The parts that are there."""
        with ThreadPoolExecutor(READERS) as threads:
            return list(threads.map(self._look, self.parts()))

    def read(self, part: str) -> pa.Table:
        """The rows of a part."""
        return pq.read_table(part, filesystem=self._fs)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read one of the small files, if it is there."""
        try:
            with self._fs.open_input_file(f"{self._path}/{name}") as file:
                found: dict[str, Any] = json.loads(file.read())
        except FileNotFoundError:
            return None
        return found

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write one of the small files, in one step."""
        with self._whole(name) as path, self._fs.open_output_stream(path) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")

    def _look(self, path: str) -> Done:
        footer = pq.read_metadata(path, filesystem=self._fs)
        number = int(path.rpartition("/")[2].partition(".")[0])
        return Done(number, footer.num_rows, json.loads(footer.metadata[b"errors"]))

    def _list(self, names: Iterable[str], shard: int) -> int:
        images, left = 0, iter(names)
        with (
            self._whole("listing.parquet") as path,
            pq.ParquetWriter(path, NAMES, filesystem=self._fs, write_statistics=False) as writer,
        ):
            while some := [os.fsencode(name) for name in itertools.islice(left, shard)]:
                writer.write_table(pa.table([some], schema=NAMES))
                images += len(some)
        return images

    @contextmanager
    def _whole(self, name: str) -> Iterator[str]:
        """Where to write a file, so that it is there whole or not at all; an object in a bucket always is."""
        path = f"{self._path}/{name}"
        if not self._local:
            yield path
            return
        with whole(Path(path)) as unfinished:
            yield str(unfinished)
