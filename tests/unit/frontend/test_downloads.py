"""Files that the page offers for download."""

from __future__ import annotations

import csv
import io
import tomllib
from datetime import UTC, datetime

import pandas as pd

from frontend.components.downloads import to_csv
from tests.support.paths import ROOT


def test_a_table_becomes_a_csv_without_formulas() -> None:
    """Text is escaped, column names included; numbers, times and empty cells are what they were."""
    table = pd.DataFrame(
        {
            "name": ["=1+1", "a.jpg", "-x"],
            "score": [-0.5, 0.25, None],
            "images": [-1, 2, 3],
            "time": [datetime(2026, 11, 29, tzinfo=UTC)] * 3,
            "right": [True, False, True],
            "@reason": [None, "@x", "+y"],
        }
    )
    rows = list(csv.reader(io.StringIO(to_csv(table), newline="")))
    assert rows == [
        ["name", "score", "images", "time", "right", "'@reason"],
        ["'=1+1", "-0.5", "-1", "2026-11-29 00:00:00+00:00", "True", ""],
        ["a.jpg", "0.25", "2", "2026-11-29 00:00:00+00:00", "False", "'@x"],
        ["'-x", "", "3", "2026-11-29 00:00:00+00:00", "True", "'+y"],
    ]


def test_streamlits_own_export_of_tables_is_off() -> None:
    """Streamlit's toolbar writes a table's cells as they come."""
    assert (
        tomllib.loads((ROOT / "frontend" / ".streamlit" / "config.toml").read_text())["client"]["disableDataExport"]
        is True
    )
