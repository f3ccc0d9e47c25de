"""Many photos: progress, cards, table, downloads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from frontend.api_client import ApiClient, Json, Photo, failed, size_problem
from frontend.components.certainty import SURE, UNKNOWN, UNSURE, certainty
from frontend.components.downloads import offer_csv_and_json
from frontend.components.head_answer import verdict
from frontend.components.markdown import escape_markdown
from frontend.components.one_photo import show_one
from frontend.components.pictures import THUMBNAIL_PX, grid, make_picture, show_picture
from frontend.components.problems import show_problem

CARDS_PER_PAGE, CARD_COLUMNS = 24, 4
ALL, FAILED = "All", "Failed"
STATES = [ALL, SURE, UNSURE, UNKNOWN, FAILED]
ORDERS = {  # text -> the column to sort by, and whether it ascends
    "As uploaded": ("index", True),
    "Most confident first": ("score", False),
    "Least confident first": ("score", True),
    "Class": ("class", True),
    "Name": ("name", True),
}


def show_many(client: ApiClient, photos: Sequence[Photo], served: Json, taught: Sequence[Json] = ()) -> None:
    """Classify the photos and show counts, filters, cards or a table, and downloads.

    ``served`` is the response of ``GET /v1/models``, ``taught`` are the heads of it that are used too.
    """
    results = classify_all(client, photos, served, taught)
    rows = _rows(photos, results, taught)
    refused = rows[rows["state"] == FAILED]
    columns = st.columns(4)
    columns[0].metric("Photos", len(rows))
    columns[1].metric("Classified", len(rows) - len(refused))
    columns[2].metric("Not sure", int(rows["state"].isin([UNSURE, UNKNOWN]).sum()))
    columns[3].metric("Failed", len(refused))
    retryable = [photos[i] for i in refused.index if results[i]["error"].get("retryable")]
    if retryable and st.button("Retry failed photos", icon=":material/refresh:"):
        for photo in retryable:
            _cache(served, taught).pop(photo.key, None)
        st.rerun()
    shown = _filtered(rows)
    view = st.segmented_control("View", ["Cards", "Table"], default="Cards", label_visibility="collapsed")
    if shown.empty:
        st.info("No photo matches these filters.")
    elif view == "Table":
        _show_table(shown, photos, served)
    else:
        _show_cards(client, shown, photos, results, served, taught)
    document = [{**results[i], "index": int(i), "id": photos[i].name} for i in shown.index]
    offer_csv_and_json(shown, document, "predictions")


def classify_all(client: ApiClient, photos: Sequence[Photo], served: Json, taught: Sequence[Json] = ()) -> list[Json]:
    """Return a result for each photo, in order; classify those that this session has not classified yet.

    A progress bar shows how many results have arrived. The API's limits decide how many requests are sent.
    """
    cache, limits = _cache(served, taught), served["limits"]
    new = {photo.key: photo for photo in photos if photo.key not in cache}
    for key, photo in new.items():
        if problem := size_problem(photo, limits):
            cache[key] = failed(0, photo, problem)
    if missing := [photo for key, photo in new.items() if key not in cache]:
        start, errors = time.monotonic(), 0
        bar = st.progress(0.0, f"0 of {len(missing)}")
        heads = {"head": ",".join(head["name"] for head in taught)} if taught else {}
        results = client.classify_many(missing, limits["max_images"], limits["max_body_bytes"], **heads)
        for done, result in enumerate(results, 1):
            cache[missing[result["index"]].key] = result
            errors += result["status"] == "error"
            rate = done / (time.monotonic() - start)
            bar.progress(done / len(missing), f"{done} of {len(missing)} · {errors} failed · {rate:.0f} images/s")
        bar.empty()
    return [cache[photo.key] for photo in photos]


def _cache(served: Json, taught: Sequence[Json]) -> dict[str, Json]:
    """Return the results of these versions of model and heads in this session, by ``Photo.key``."""
    versions = [served["models"][0]["version"], *(f"{head['name']} {head['version']}" for head in taught)]
    cache: dict[str, Json] = st.session_state.setdefault(f"results-{','.join(versions)}", {})
    return cache


def _rows(photos: Sequence[Photo], results: Sequence[Json], taught: Sequence[Json]) -> pd.DataFrame:
    """Return one row per photo: name, state, class, score, reason, and what each head says.

    The index is the photo's index in ``photos``.
    """
    rows: list[tuple[Any, ...]] = []
    for photo, result in zip(photos, results, strict=True):
        if result["status"] == "error":
            problem = result["error"]
            rows.append((photo.name, FAILED, None, None, f"{problem.get('title')}: {problem.get('detail')}"))
        else:
            best = result["predictions"][0]
            rows.append((photo.name, certainty(result), best["label"], best["score"], None))
    table = pd.DataFrame(rows, columns=["name", "state", "class", "score", "reason"])
    for head in taught:
        answers = (result.get("heads", {}).get(head["name"]) for result in results)
        table[head_column(head)] = [answer and verdict(answer) for answer in answers]
    return table.rename_axis("index").astype({"score": float})


def head_column(head: Json) -> str:
    """Return the name of the column with what a head says."""
    return f"head {head['name']}"


def _filtered(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that pass the user's filters, in the user's order."""
    class_box, score_box, order_box = st.columns(3)
    state = st.segmented_control("Show", STATES, default=ALL) or ALL
    classes = class_box.multiselect("Classes", sorted(rows["class"].dropna().unique()), placeholder="All classes")
    min_score = score_box.slider("Minimum confidence", 0, 100, 0, format="%d %%") / 100
    column, ascending = ORDERS[order_box.selectbox("Order", ORDERS)]
    if state != ALL:
        rows = rows[rows["state"] == state]
    if classes:
        rows = rows[rows["class"].isin(classes)]
    if min_score:
        rows = rows[rows["score"] >= min_score]
    return rows.sort_values(column, ascending=ascending, kind="stable")


def _show_cards(
    client: ApiClient,
    shown: pd.DataFrame,
    photos: Sequence[Photo],
    results: Sequence[Json],
    served: Json,
    taught: Sequence[Json],
) -> None:
    pages = -(-len(shown) // CARDS_PER_PAGE)
    page = st.pagination(pages, key="many-page") if pages > 1 else 1
    rows = shown.iloc[(page - 1) * CARDS_PER_PAGE : page * CARDS_PER_PAGE]
    with st.spinner("Making the thumbnails…"):
        pictures = {i: make_picture(photos[i], served["limits"], THUMBNAIL_PX) for i in rows.index}
    for column, i in grid(list(rows.index), CARD_COLUMNS):
        row, picture = rows.loc[i], pictures[i]
        with column.container(border=True):
            if row["state"] == FAILED:
                if picture.jpeg:
                    show_picture(picture)
                show_problem(results[i]["error"], row["name"])
                continue
            show_picture(picture)
            state = "" if row["state"] == SURE else f" · {row['state'].lower()}"
            st.progress(row["score"], f"**{escape_markdown(row['class'])}** · {row['score']:.0%}{state}")
            for head in taught:
                st.markdown(f"{escape_markdown(head['name'])}: **{escape_markdown(row[head_column(head)])}**")
            st.caption(escape_markdown(row["name"]))
            if st.button("Details", key=f"details-{i}", type="tertiary"):
                _show_details(client, photos[i], served, taught)


@st.dialog("Details", width="large")
def _show_details(client: ApiClient, photo: Photo, served: Json, taught: Sequence[Json]) -> None:
    st.caption(escape_markdown(photo.name))
    show_one(client, photo, served, taught, key="details")


def _show_table(shown: pd.DataFrame, photos: Sequence[Photo], served: Json) -> None:
    table = shown.assign(score=shown["score"] * 100, reason=shown["reason"].fillna(""))
    with st.spinner("Making the thumbnails…"):
        pictures = [make_picture(photos[i], served["limits"], THUMBNAIL_PX).data_url for i in shown.index]
    table.insert(0, "photo", pictures)
    columns: dict[str, Any] = {
        "photo": st.column_config.ImageColumn("Photo", width="small"),
        "name": "Name",
        "state": "State",
        "class": "Class",
        "score": st.column_config.ProgressColumn("Confidence", format="%.1f %%", min_value=0, max_value=100),
        "reason": st.column_config.TextColumn("Error", width="large"),
    }
    st.dataframe(table, hide_index=True, row_height=56, column_config=columns)
