"""The folder of results, which lets a stopped run go on where it was.

    manifest.json         source, model and top_k; written once the listing is complete
    listing.parquet       the name of every image, as bytes; row group n is shard n
    parts/000012.parquet  one row per image of shard 12, written atomically
    summary.json          written once all parts are complete

The source is listed once. Whatever happens to the source afterwards, every image is in one shard, and every shard
becomes one part.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.sources import filesystem
from serve_app.errors import SourceError
from serve_app.files import atomic_write, exclusive_lock
from serve_app.model_card import ModelCard

LISTING_SCHEMA = pa.schema([("name", pa.binary())])
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("labels", pa.list_(pa.string())),  # best first
        ("scores", pa.list_(pa.float32())),
        ("class_ids", pa.list_(pa.int32())),
        ("margin", pa.float32()),
        ("entropy", pa.float32()),
        ("error", pa.string()),  # an error code; null for a classified image
        ("detail", pa.string()),
        ("version", pa.string()),  # of the weights
    ]
)
FOOTER_READERS = 16  # parts whose footer is read at a time


class BusyError(SourceError):
    """Another run writes to the same folder of results."""


class CompletedShard(NamedTuple):
    """A shard whose part is written."""

    shard: int
    images: int
    errors: dict[str, int]  # number of images by error code


class ResultsFolder:
    """Reads and writes the folder of results (an absolute path or bucket prefix), in the command and every worker."""

    def __init__(self, out: str) -> None:
        self._fs, path = filesystem(out)
        self._path = path.rstrip("/")
        self._is_local = isinstance(self._fs, fs.LocalFileSystem)
        self._listing: pq.ParquetFile | None = None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of this folder while the block runs (BusyError if one writes); a bucket has no lock."""
        with ExitStack() as stack:
            if self._is_local:
                try:
                    os.makedirs(self._path, exist_ok=True)
                    stack.enter_context(exclusive_lock(Path(self._path, ".lock")))
                except BlockingIOError:
                    raise BusyError(f"another run writes to {self._path}: wait until it has ended") from None
                except OSError as error:
                    raise SourceError(f"{self._path}: cannot be written to ({error})") from None
            yield

    def begin(self, job: BatchJobConfig, card: ModelCard, names: Iterable[str], shard_size: int) -> dict[str, Any]:
        """Write listing and manifest, or read the manifest of an earlier run of the same job.

        The names and ``shard_size``, the images per shard, count only if there is no manifest yet.

        Raises:
            SourceError: The folder holds results of another source, model or top_k; or the source has no images.
        """
        model = {**card.ref.model_dump(), "temperature": card.temperature}
        identity = {"source": job.source, "top_k": job.top_k, "model": model}
        if (earlier := self.read_json("manifest.json")) is not None:
            differences = [f"{key} {earlier.get(key)!r}" for key in identity if earlier.get(key) != identity[key]]
            if differences:
                raise SourceError(f"{self._path} has results of {', '.join(differences)}: choose another folder")
            return earlier
        self._fs.create_dir(f"{self._path}/parts", recursive=True)
        images = self._write_listing(names, shard_size)
        if images == 0:
            raise SourceError(f"{job.source} holds no files")
        manifest = {**identity, "images": images, "shard_size": shard_size, "shards": -(-images // shard_size)}
        self.write_json("manifest.json", manifest)
        return manifest

    def shard_names(self, shard: int) -> list[str]:
        """Return the names of a shard's images."""
        if self._listing is None:
            self._listing = pq.ParquetFile(f"{self._path}/listing.parquet", filesystem=self._fs)
        return [os.fsdecode(name.as_py()) for name in self._listing.read_row_group(shard)["name"]]

    def write_part(self, shard: int, rows: list[dict[str, Any]]) -> CompletedShard:
        """Write a shard's rows (SCHEMA) as one part, atomically; its error counts go to the file's metadata."""
        errors = dict(Counter(row["error"] for row in rows if row["error"] is not None))
        schema = SCHEMA.with_metadata({"errors": json.dumps(errors)})
        with self._atomic_write(f"parts/{shard:06d}.parquet") as path:
            pq.write_table(pa.Table.from_pylist(rows, schema), path, filesystem=self._fs, compression="zstd")
        return CompletedShard(shard, len(rows), errors)

    def parts(self) -> list[str]:
        """Return the paths of the complete parts, in the order of their shards."""
        files = self._fs.get_file_info(fs.FileSelector(f"{self._path}/parts", allow_not_found=True))
        return sorted(file.path for file in files if not file.base_name.startswith("."))

    def completed_shards(self) -> list[CompletedShard]:
        """Return counts of every complete part; reads only the files' footers."""
        with ThreadPoolExecutor(FOOTER_READERS) as threads:
            return list(threads.map(self._read_footer, self.parts()))

    def read_part(self, path: str) -> pa.Table:
        """Return the rows of a part."""
        return pq.read_table(path, filesystem=self._fs)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file in this folder, or None if there is no such file."""
        with suppress(FileNotFoundError), self._fs.open_input_file(f"{self._path}/{name}") as file:
            return dict(json.loads(file.read()))
        return None

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file into this folder, atomically."""
        with self._atomic_write(name) as path, self._fs.open_output_stream(path) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")

    def _read_footer(self, path: str) -> CompletedShard:
        footer = pq.read_metadata(path, filesystem=self._fs)
        shard = int(path.rpartition("/")[2].partition(".")[0])
        return CompletedShard(shard, footer.num_rows, json.loads(footer.metadata[b"errors"]))

    def _write_listing(self, names: Iterable[str], shard_size: int) -> int:
        """Write one row group per shard; return the number of images."""
        images, remaining = 0, iter(names)
        with (
            self._atomic_write("listing.parquet") as path,
            pq.ParquetWriter(path, LISTING_SCHEMA, filesystem=self._fs, write_statistics=False) as writer,
        ):
            while shard := [os.fsencode(name) for name in itertools.islice(remaining, shard_size)]:
                writer.write_table(pa.table([shard], schema=LISTING_SCHEMA))
                images += len(shard)
        return images

    @contextmanager
    def _atomic_write(self, name: str) -> Iterator[str]:
        path = f"{self._path}/{name}"
        if not self._is_local:  # an object in a bucket appears once it is complete
            yield path
            return
        with atomic_write(Path(path)) as temporary:
            yield str(temporary)
