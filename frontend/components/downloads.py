"""Download buttons."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

DOWNLOAD_ICON = ":material/download:"


def offer_csv(table: pd.DataFrame, name: str) -> None:
    """Offer a table as ``name.csv``."""
    data = table.to_csv(index=False)
    st.download_button("CSV", data, f"{name}.csv", "text/csv", key=f"{name}-csv", icon=DOWNLOAD_ICON)


def offer_csv_and_json(table: pd.DataFrame, document: Any, name: str) -> None:
    """Offer a table as ``name.csv`` and a document as ``name.json``, side by side."""
    csv, raw, _ = st.columns([1, 1, 4])
    with csv:
        offer_csv(table, name)
    data = json.dumps(document, indent=2)
    raw.download_button("JSON", data, f"{name}.json", "application/json", key=f"{name}-json", icon=DOWNLOAD_ICON)
