"""Exports stream: one part is in memory at a time."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq

from serve_app.batch.export import stream
from serve_app.batch.plan import BatchJobConfig
from serve_app.batch.results import ResultsFolder
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
