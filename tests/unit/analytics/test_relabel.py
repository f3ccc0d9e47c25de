"""`serve-app relabel`: the past, classified again from the log's embeddings."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.heads.store import HeadStore
from serve_app.http.heads.access import stored_name
from tests.support.heads import examples_around, unfitted
from tests.support.prediction_rows import row, write_raw

NOW = datetime.datetime.now(datetime.UTC)


def test_logged_images_are_classified_again(tmp_path: Path) -> None:
    """Rows since the time get the head's class, each once; others are counted by the reason."""
    examples = examples_around(("mine", "others"), 3)
    fitted = unfitted(examples)
    head = replace(fitted.head, backbone=fitted.head.backbone.model_copy(update={"version": "v1"}))
    store = HeadStore(tmp_path / "heads")
    store.write(stored_name("cups", "alice"), fitted._replace(head=head), examples, owner="alice")
    embeddings = [example.embedding.astype("<f2") for example in examples]
    rows = [row(n, time=NOW, embedding=each.tobytes()) for n, each in enumerate(embeddings)]
    rows += [
        rows[0],
        row(50, time=NOW),
        row(51, time=NOW, embedding=embeddings[0].tobytes(), version="v2"),
        row(52, time=NOW - datetime.timedelta(days=8), embedding=embeddings[0].tobytes()),
    ]
    (tmp_path / "log").mkdir()
    write_raw(tmp_path / "log", "a", rows)
    arguments = ["relabel", str(tmp_path / "out.parquet"), "--head", "cups", "--owner", "alice", "--since", "7d"]
    arguments += ["--heads", str(tmp_path / "heads"), "--log", str(tmp_path / "log")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    expected = [head.classify(each.astype(np.float32), 1) for each in embeddings]
    assert json.loads(result.stdout) == {
        "rows": 6,
        "none_of_these": sum(each.none_of_these for each in expected),
        "without_embedding": 1,
        "other_weights": 1,
    }
    written = pq.read_table(tmp_path / "out.parquet").sort_by("request_id").to_pylist()
    assert [each["label"] for each in written] == [each.labels[0] for each in expected]


def test_mistakes_are_named(tmp_path: Path) -> None:
    """An unknown head, a log without files, and a time that is none."""
    base = ["relabel", str(tmp_path / "out"), "--heads", str(tmp_path), "--log", str(tmp_path), "--head", "cups"]
    unknown = CliRunner().invoke(app, [*base, "--since", "7d"])
    assert (unknown.exit_code, "no head 'cups'" in unknown.output) == (1, True)
    assert CliRunner().invoke(app, [*base, "--since", "soon"]).exit_code == 2
    examples = examples_around(("mine", "others"), 3)
    HeadStore(tmp_path).write("cups", unfitted(examples), examples, owner=None)
    empty = CliRunner().invoke(app, [*base, "--since", "7d"])
    assert (empty.exit_code, "has no prediction log" in empty.output) == (1, True)
