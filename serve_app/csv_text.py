"""Write lines of CSV whose text no spreadsheet runs as a formula; the only home of that rule.

Excel, LibreOffice and Google Sheets run a cell that starts with ``=``, ``+``, ``-`` or ``@``, and file names, labels
and error texts come from anyone. Such text gets a single quote in front, which makes the cell text. Numbers stay
numbers.

Source:
    OWASP, "CSV Injection", https://owasp.org/www-community/attacks/CSV_Injection
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Number

# Spreadsheets drop spaces, control characters and byte order marks in front; the wide forms are of Japanese input.
FORMULA = re.compile("[\\s\\x00-\\x1f\ufeff\u200b]*[=+\\-@\uff1d\uff0b\uff0d\uff20]|[\\t\\r\\n]")
QUOTED = re.compile('[",;|\x00-\x1f\x7f-\x9f\u2028\u2029]')  # semicolon and tab separate cells in many locales


def csv_line(values: Iterable[object]) -> str:
    """Return one line of CSV; None and NaN give an empty cell, numbers are written as they are."""
    return ",".join(map(_cell, values)) + "\n"


def _cell(value: object) -> str:
    if value is None or value != value:  # only NaN differs from itself
        return ""
    if isinstance(value, Number):
        return str(value)
    text = str(value)
    is_formula = FORMULA.match(text) is not None
    if is_formula:
        text = f"'{text}"
    return '"' + text.replace('"', '""') + '"' if is_formula or QUOTED.search(text) else text
