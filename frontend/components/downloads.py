"""Download buttons."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

from serve_app.csv_text import csv_line

DOWNLOAD_ICON = ":material/download:"


def offer_csv(table: pd.DataFrame, name: str) -> None:
    """Offer a table as ``name.csv``."""
    st.download_button("CSV", to_csv(table), f"{name}.csv", "text/csv", key=f"{name}-csv", icon=DOWNLOAD_ICON)


def offer_csv_and_json(table: pd.DataFrame, document: Any, name: str) -> None:
    """Offer a table as ``name.csv`` and a document as ``name.json``, side by side."""
    data = json.dumps(document, indent=2)
    with st.container(horizontal=True):
        offer_csv(table, name)
        st.download_button("JSON", data, f"{name}.json", "application/json", key=f"{name}-json", icon=DOWNLOAD_ICON)


def to_csv(table: pd.DataFrame) -> str:
    """Return a table without its index as CSV."""
    rows = table.astype(object).where(table.notna(), None).itertuples(index=False, name=None)
    return csv_line(table.columns) + "".join(map(csv_line, rows))
