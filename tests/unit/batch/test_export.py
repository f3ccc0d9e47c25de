"""Exports stream: one part is in memory at a time."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve_app.batch.export import Format, stream
from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.results import ResultsFolder, schema
from serve_app.config import WeightsConfig
from serve_app.inference.card import load_card


def test_parquet_export_holds_one_part_at_a_time(tmp_path: Path, weights: WeightsConfig) -> None:
    """A Parquet file of fifty parts is complete, and no chunk but the footer is larger than a part."""
    results = ResultsFolder(str(tmp_path))
    job = BatchJobConfig(source="s", out=str(tmp_path), weights=weights)
    results.begin(job, load_card(weights), map(str, range(500)), 10)
    for shard in range(50):
        names = [f"{shard:02}-{n}" for n in range(10)]
        empty = {"labels": None, "scores": None, "class_ids": None, "margin": None, "entropy": None, "version": "v"}
        results.write_part(shard, [{"path": name, "error": "e", "detail": name * 50, **empty} for name in names])
    *chunks, footer = stream(results, "parquet", "all", 3)
    assert len(chunks) >= 49
    assert max(map(len, chunks)) < 4_000
    table = pq.read_table(io.BytesIO(b"".join([*chunks, footer])))
    assert table.num_rows == 500
    assert table["path"][0].as_py() == "00-0"


def test_csv_export_has_no_formula_in_it(tmp_path: Path, weights: WeightsConfig) -> None:
    """Paths, labels and error texts come from outside and are escaped; scores and margins stay numbers."""
    results = ResultsFolder(str(tmp_path))
    results.begin(BatchJobConfig(source="s", out=str(tmp_path), weights=weights), load_card(weights), ["a"], 2)
    classes = {"labels": ["@cat", "-dog"], "scores": [0.75, 1e-7], "class_ids": [0, 1], "margin": 0.5, "entropy": 0.25}
    rows = [
        {"path": "=cmd|'/c calc'!A0.jpg", "error": None, "detail": None, "version": "+v", **classes},
        {"path": "-1.jpg", "error": "unreadable", "detail": "\t=x", "version": "v", **dict.fromkeys(classes)},
    ]
    results.write_part(0, rows)
    text = b"".join(stream(results, "csv", "all", 2)).decode()
    header, first, second = csv.reader(io.StringIO(text, newline=""))
    assert header[:3] == ["path", "label_1", "score_1"]
    assert first == ["'=cmd|'/c calc'!A0.jpg", "'@cat", "0.75", "'-dog", "1e-07", "0.5", "0.25", "", "", "'+v"]
    assert second == ["'-1.jpg", *[""] * 6, "unreadable", "'\t=x", "v"]


def test_embeddings_are_in_every_format_but_csv(tmp_path: Path, weights: WeightsConfig) -> None:
    """Rows of images that failed or are lost have none; without `embed` no format has the column."""
    for embed in (True, False):
        results = ResultsFolder(str(tmp_path / str(embed)))
        job = BatchJobConfig(source="s", out=str(tmp_path / str(embed)), weights=weights, embed=embed)
        results.begin(job, load_card(weights), ["a", "b", "lost"], 2)
        classes = {"labels": ["ant"], "scores": [1.0], "class_ids": [0], "margin": 1.0, "entropy": 0.0}
        embedding = np.linspace(0, 1, 512, dtype=np.float32)
        rows = [
            {"path": "a", "error": None, "detail": None, "version": "v", "embedding": embedding, **classes},
            {"path": "b", "error": "e", "detail": "d", "version": "v", "embedding": None, **dict.fromkeys(classes)},
        ]
        results.write_part(0, rows, schema(embed))

        def read(format: Format, results: ResultsFolder = results, embed: bool = embed) -> bytes:
            return b"".join(stream(results, format, "all", 1, is_complete=True, embed=embed))

        table = pq.read_table(io.BytesIO(read("parquet")))
        assert table.num_rows == 3
        assert "embedding" not in read("csv").decode()
        first, *failed = json.loads(read("json"))
        assert [json.loads(line) for line in read("jsonl").splitlines()] == [first, *failed]
        assert not any("embedding" in row for row in failed)
        if embed:
            assert table.schema.field("embedding").type == pa.list_(pa.float32())
            np.testing.assert_array_equal(table["embedding"][0].as_py(), embedding)
            assert table["embedding"].to_pylist()[1:] == [None, None]
            np.testing.assert_array_equal(first["embedding"], embedding)
        else:
            assert "embedding" not in [*table.column_names, *first]
