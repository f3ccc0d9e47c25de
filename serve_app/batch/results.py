"""The folder of results, which lets a stopped run go on where it was.

    manifest.json         source, model and settings; written once the listing is complete
    listing.parquet       the name of every image, as bytes; row group n is shard n
    parts/000012.parquet  one row per image of shard 12, written atomically
    summary.json          written once all parts are complete

The source is listed once. Whatever happens to the source afterwards, every image is in one shard, and every shard
becomes one part. A part that is empty or cut counts as missing, so a run computes it again. Without a readable manifest
and listing, the source is listed again and all parts are computed again.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic import ValidationError

from serve_app.batch.outages import is_passing
from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.sources import filesystem
from serve_app.config import EngineConfig, LimitsConfig
from serve_app.errors import SourceError, SourceUnavailableError
from serve_app.files import CorruptFileError, atomic_write, create_folder, exclusive_lock
from serve_app.model_card import ModelCard
from serve_app.settings import FrozenModel

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
NONE_OF_THESE = pa.field("none_of_these", pa.bool_())  # only with ``head``: the image is like no taught photo
EMBEDDING = pa.field("embedding", pa.list_(pa.float32()))  # the last column, only with ``embed``
PART = re.compile(r"\d{6,}\.parquet")
LOST = "the result of this image is lost; submit the job again"
FOOTER_READERS = 16  # parts whose footer is read at a time


def schema(embed: bool, head: bool = False) -> pa.Schema:
    """Return the columns of results, with those of ``head`` and ``embed``."""
    columns = SCHEMA.append(NONE_OF_THESE) if head else SCHEMA
    return columns.append(EMBEDDING) if embed else columns


class BusyError(SourceError):
    """Another run writes to the same folder of results."""


class CompletedShard(NamedTuple):
    """A shard whose part is written."""

    shard: int
    images: int
    errors: dict[str, int]  # number of images by error code


class Manifest(FrozenModel):
    """What the results are of; the content of ``manifest.json``."""

    source: str
    top_k: int
    embed: bool = False
    head: str | None = None  # folder of the version
    model: dict[str, Any]  # name, version, hash and temperature
    engine: EngineConfig | None = None  # None and no limits: version 0.1 wrote the manifest
    limits: LimitsConfig | None = None
    images: int
    shard_size: int
    shards: int


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
                    create_folder(Path(self._path))
                    stack.enter_context(exclusive_lock(Path(self._path, ".lock")))
                except BlockingIOError:
                    raise BusyError(f"another run writes to {self._path}: wait until it has ended") from None
                except OSError as error:
                    kind = SourceUnavailableError if is_passing(error) else SourceError
                    raise kind(f"{self._path}: cannot be written to ({error})") from None
            yield

    def begin(self, job: BatchJobConfig, card: ModelCard, names: Iterable[str], shard_size: int) -> dict[str, Any]:
        """Write listing and manifest, or read the manifest of an earlier run of the same job.

        The names and ``shard_size``, the images per shard, count only if there is no manifest yet.

        Raises:
            SourceError: The folder holds results of another source, model or setting; or the source has no images.
        """
        model = {**card.ref.model_dump(), "temperature": card.temperature}
        identity = {"source": job.source, "top_k": job.top_k, "embed": job.embed, "head": job.head, "model": model}
        identity |= {"engine": job.engine.model_dump(), "limits": job.limits.model_dump()}
        if (manifest := self._read_manifest()) is not None:
            earlier = manifest.model_dump()
            differences = [f"{key} {earlier[key]!r}" for key in identity if earlier[key] not in (None, identity[key])]
            if differences:
                raise SourceError(f"{self._path} has results of {', '.join(differences)}: choose another folder")
            return earlier
        self._create_folder("parts")
        for part in self.parts():  # of a manifest that is lost, so their shards are unknown
            self._fs.delete_file(part)
        images = self._write_listing(names, shard_size)
        if images == 0:
            raise SourceError(f"{job.source} holds no files")
        manifest = Manifest(**identity, images=images, shard_size=shard_size, shards=-(-images // shard_size))
        self.write_json("manifest.json", manifest.model_dump())
        return manifest.model_dump()

    def shard_names(self, shard: int) -> list[str]:
        """Return the names of a shard's images."""
        return [os.fsdecode(name.as_py()) for name in self._read_listing().read_row_group(shard)["name"]]

    def write_part(self, shard: int, rows: list[dict[str, Any]], columns: pa.Schema = SCHEMA) -> CompletedShard:
        """Write a shard's rows, with the columns of ``schema``, as one part; its error counts go to the metadata."""
        errors = dict(Counter(row["error"] for row in rows if row["error"] is not None))
        columns = columns.with_metadata({"errors": json.dumps(errors)})
        with self._atomic_write(f"parts/{shard:06d}.parquet") as path:
            pq.write_table(pa.Table.from_pylist(rows, columns), path, filesystem=self._fs, compression="zstd")
        return CompletedShard(shard, len(rows), errors)

    def parts(self) -> list[str]:
        """Return the paths of the parts, in the order of their shards; some may be empty or cut."""
        files = self._fs.get_file_info(fs.FileSelector(f"{self._path}/parts", allow_not_found=True))
        return sorted(file.path for file in files if PART.fullmatch(file.base_name))

    def completed_shards(self) -> list[CompletedShard]:
        """Return counts of every complete part; reads only the files' footers."""
        with ThreadPoolExecutor(FOOTER_READERS) as threads:
            return [shard for shard in threads.map(self._read_footer, self.parts()) if shard]

    def read_part(self, path: str) -> pa.Table:
        """Return the rows of a part; raise CorruptFileError if it is empty or cut."""
        with _naming_corrupt_files():
            return pq.read_table(path, filesystem=self._fs)

    def tables(self, is_complete: bool) -> Iterator[pa.Table]:
        """Yield the rows of each shard, in order.

        A part that is lost becomes rows with an error, if the results are complete (``summary.json`` was written);
        else its images were not classified yet, and have no rows.
        """
        parts = {_shard(path): path for path in self.parts()}
        manifest = self._read_manifest() if is_complete else None
        for shard in range(manifest.shards) if manifest else sorted(parts):
            try:
                yield self.read_part(parts[shard])
            except (CorruptFileError, FileNotFoundError, KeyError):
                if manifest:
                    yield self._lost_rows(shard, schema(manifest.embed, manifest.head is not None))

    def _lost_rows(self, shard: int, columns: pa.Schema) -> pa.Table:
        names = [name.encode(errors="surrogateescape").decode(errors="replace") for name in self.shard_names(shard)]
        return pa.Table.from_pylist(
            [{"path": name, "error": SourceError.code, "detail": LOST} for name in names], columns
        )

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file into this folder, atomically."""
        with self._atomic_write(name) as path, self._fs.open_output_stream(path) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")

    def _read_manifest(self) -> Manifest | None:
        """Return the manifest; None if it is missing, or if it or the listing that belongs to it cannot be read."""
        with suppress(FileNotFoundError, CorruptFileError, ValidationError):
            with self._fs.open_input_file(f"{self._path}/manifest.json") as file:
                manifest = Manifest.model_validate_json(file.read(), extra="ignore")
            if self._read_listing().num_row_groups == manifest.shards:
                return manifest
        return None

    def _read_listing(self) -> pq.ParquetFile:
        if self._listing is None:
            with _naming_corrupt_files():
                self._listing = pq.ParquetFile(f"{self._path}/listing.parquet", filesystem=self._fs)
        return self._listing

    def _read_footer(self, path: str) -> CompletedShard | None:
        """Return a part's counts; None if it is empty or cut."""
        with suppress(CorruptFileError, FileNotFoundError), _naming_corrupt_files():
            footer = pq.read_metadata(path, filesystem=self._fs)
            return CompletedShard(_shard(path), footer.num_rows, json.loads(footer.metadata[b"errors"]))
        return None

    def _write_listing(self, names: Iterable[str], shard_size: int) -> int:
        """Write one row group per shard; return the number of images."""
        self._listing = None
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

    def _create_folder(self, name: str) -> None:
        if self._is_local:
            create_folder(Path(self._path, name))
        else:
            self._fs.create_dir(f"{self._path}/{name}", recursive=True)


def _shard(path: str) -> int:
    """Return the number of a part's shard."""
    return int(path.rpartition("/")[2].partition(".")[0])


@contextmanager
def _naming_corrupt_files() -> Iterator[None]:
    """Raise CorruptFileError for what pyarrow raises if a Parquet file is empty, cut or full of zeros."""
    try:
        yield
    except (
        ValueError,
        KeyError,
        TypeError,
    ) as error:  # ArrowInvalid is a ValueError; no metadata: a KeyError or TypeError
        raise CorruptFileError(str(error)) from error
    except OSError as error:
        if error.errno is not None or is_passing(error):  # the storage failed, not the file
            raise
        raise CorruptFileError(str(error)) from error
