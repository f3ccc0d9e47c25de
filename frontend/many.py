"""Many photos: progress, cards, table, downloads."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from frontend.client import Client, Json, Photo
from frontend.heatmap import open_upright
from frontend.single import show_problem, show_single

PER_PAGE, COLUMNS, THUMBNAIL_PX = 24, 4, 256
ALL, SURE, UNSURE, FAILED = "All", "Sure", "Not sure", "Failed"
ORDERS = ("As uploaded", "Most confident first", "Least confident first", "Class", "Name")


def show_many(client: Client, photos: Sequence[Photo], served: Json) -> None:
    """Classify what has no answer yet, then show everything.

    Args:
        client: To the API.
        photos: In the order to show.
        served: The answer of ``/v1/models``.
    """
    model = served["models"][0]
    answers: dict[Any, Json] = st.session_state.setdefault("many", {})
    classify_missing(client, photos, served, answers)
    results = [answers[(photo.key, model["version"])] for photo in photos]
    rows = _rows(photos, results)
    failed = rows[rows["state"] == FAILED]
    columns = st.columns(4)
    columns[0].metric("Photos", len(rows))
    columns[1].metric("Classified", len(rows) - len(failed))
    columns[2].metric("Not sure", int((rows["state"] == UNSURE).sum()))
    columns[3].metric("Failed", len(failed))
    retryable = [i for i in failed.index if results[i]["error"].get("retryable")]
    if retryable and st.button("Try the failed ones again", icon=":material/refresh:"):
        for i in retryable:
            answers.pop((photos[i].key, model["version"]), None)
        st.rerun()
    shown = _filtered(rows)
    view = st.segmented_control("View", ["Cards", "Table"], default="Cards", label_visibility="collapsed")
    if shown.empty:
        st.info("No photo matches these filters.")
    elif view == "Table":
        _show_table(shown, photos)
    else:
        _show_cards(client, shown, photos, results, served)
    _show_downloads(shown, photos, results)


def classify_missing(client: Client, photos: Sequence[Photo], served: Json, answers: dict[Any, Json]) -> None:
    """Classify the photos that have no answer yet, and show how far it is."""
    version, limits = served["models"][0]["version"], served["limits"]
    missing = [photo for photo in {p.key: p for p in photos}.values() if (photo.key, version) not in answers]
    if not missing:
        return
    start, failed = time.monotonic(), 0
    bar = st.progress(0.0, f"0 of {len(missing)}")
    results = client.classify_many(missing, limits["max_images"], limits["max_body_bytes"])
    for done, result in enumerate(results, 1):
        answers[(missing[result["index"]].key, version)] = result
        failed += result["status"] == "error"
        rate = done / (time.monotonic() - start)
        bar.progress(done / len(missing), f"{done} of {len(missing)} · {failed} failed · {rate:.0f} images/s")
    bar.empty()


def _rows(photos: Sequence[Photo], results: Sequence[Json]) -> pd.DataFrame:
    """One row per photo: name, state, class, score, reason; the index is its place in ``photos``."""
    rows: list[tuple[Any, ...]] = []
    for photo, result in zip(photos, results, strict=True):
        if result["status"] == "error":
            problem = result["error"]
            rows.append((photo.name, FAILED, None, None, f"{problem.get('title')}: {problem.get('detail')}"))
        else:
            best = result["predictions"][0]
            state = UNSURE if result["uncertainty"]["abstain"] else SURE
            rows.append((photo.name, state, best["label"], best["score"], None))
    return pd.DataFrame(rows, columns=["name", "state", "class", "score", "reason"])


def _filtered(rows: pd.DataFrame) -> pd.DataFrame:
    """Apply the filters and the order that the user chose."""
    state_box, class_box, score_box, order_box = st.columns([3, 3, 2, 2])
    state = state_box.segmented_control("Show", [ALL, SURE, UNSURE, FAILED], default=ALL) or ALL
    classes = class_box.multiselect("Classes", sorted(rows["class"].dropna().unique()), placeholder="All classes")
    least = score_box.slider("Confidence at least", 0, 100, 0, format="%d %%") / 100
    order = order_box.selectbox("Order", ORDERS)
    keep = pd.Series(True, index=rows.index)
    if state != ALL:
        keep &= rows["state"] == state
    if classes:
        keep &= rows["class"].isin(classes)
    if least:
        keep &= rows["score"].fillna(0) >= least
    rows = rows[keep]
    by: dict[str, tuple[str, bool]] = {
        ORDERS[1]: ("score", False),
        ORDERS[2]: ("score", True),
        ORDERS[3]: ("class", True),
        ORDERS[4]: ("name", True),
    }
    if order in by:
        column, ascending = by[order]
        rows = rows.sort_values(column, ascending=ascending, kind="stable", na_position="last")
    return rows


def _show_cards(
    client: Client, shown: pd.DataFrame, photos: Sequence[Photo], results: Sequence[Json], served: Json
) -> None:
    pages = -(-len(shown) // PER_PAGE)
    page = st.pagination(pages, key="many-page") if pages > 1 else 1
    part = shown.iloc[(page - 1) * PER_PAGE : page * PER_PAGE]
    places = list(part.index)
    for first in range(0, len(places), COLUMNS):
        for column, i in zip(st.columns(COLUMNS), places[first : first + COLUMNS], strict=False):
            row = part.loc[i]
            with column.container(border=True):
                thumbnail = _thumbnail(photos[i].key, photos[i].data)
                if thumbnail:
                    st.image(thumbnail, width="stretch")
                if row["state"] == FAILED:
                    show_problem(row["name"], results[i]["error"])
                    continue
                unsure = " · not sure" if row["state"] == UNSURE else ""
                st.progress(row["score"], f"**{row['class']}** · {row['score']:.0%}{unsure}")
                st.caption(row["name"])
                if st.button("Details", key=f"details-{i}", type="tertiary"):
                    _show_details(client, photos[i], served)


@st.dialog("Details", width="large")
def _show_details(client: Client, photo: Photo, served: Json) -> None:
    st.caption(photo.name)
    show_single(client, photo, served, key="details")


def _show_table(shown: pd.DataFrame, photos: Sequence[Photo]) -> None:
    table = shown.copy()
    table.insert(0, "photo", [_data_url(_thumbnail(photos[i].key, photos[i].data)) for i in shown.index])
    table["score"] = table["score"] * 100
    table["reason"] = table["reason"].fillna("")
    st.dataframe(
        table,
        hide_index=True,
        row_height=56,
        column_config={
            "photo": st.column_config.ImageColumn("Photo", width="small"),
            "name": "Name",
            "state": "State",
            "class": "Class",
            "score": st.column_config.ProgressColumn("Confidence", format="%.1f %%", min_value=0, max_value=100),
            "reason": st.column_config.TextColumn("Why it failed", width="large"),
        },
    )


def _show_downloads(shown: pd.DataFrame, photos: Sequence[Photo], results: Sequence[Json]) -> None:
    full = [{**results[i], "index": int(i), "id": photos[i].name} for i in shown.index]
    csv, raw, _ = st.columns([1, 1, 4])
    csv.download_button("CSV", shown.to_csv(index=False), "predictions.csv", "text/csv", icon=":material/download:")
    raw.download_button(
        "JSON", json.dumps(full, indent=2), "predictions.json", "application/json", icon=":material/download:"
    )


@st.cache_data(max_entries=2000, show_spinner=False)
def _thumbnail(key: str, _data: bytes) -> bytes | None:
    """A small JPEG of a photo; None where it cannot be shown."""
    picture = open_upright(_data, THUMBNAIL_PX)
    if picture is None:
        return None
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=80)
    return encoded.getvalue()


def _data_url(jpeg: bytes | None) -> str | None:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else None
