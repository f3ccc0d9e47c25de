"""The Evaluate page: a labeled folder -> how good the served model is on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from frontend.client import Client, Json, Photo
from frontend.heatmap import open_upright
from frontend.labeled import LabelError, by_folder, class_table, compute_metrics, table, unzip
from frontend.many import classify_missing

MISTAKES, COLUMNS, THUMBNAIL_PX = 24, 6, 192
HELP = (
    "**A folder of folders**, each named like one of the model's classes and holding photos of it, or such a folder as "
    "a zip. The photos are classified as any others are, and the answers are compared with the folders' names."
)


def show_evaluate(client: Client) -> None:
    """Take labeled photos in, show how good the served model is on them.

    Raises:
        ServerDownError: The API does not answer.
    """
    served = client.models()
    model = served["models"][0]
    st.title("How good is the model?")
    st.caption(f"Model {model['name']}, version {model['version']} · {model['classes']} classes")
    try:
        photos = _photos(served["formats"])
        if not photos:
            st.info(HELP, icon=":material/folder_open:")
            return
        named = by_folder(photos, client.labels(model["name"], model["variant"]), served["formats"])
    except LabelError as error:
        st.error(str(error), icon=":material/warning:")
        return
    answers: dict[Any, Json] = st.session_state.setdefault("many", {})
    classify_missing(client, [photo for photo, _ in named], served, answers)
    results = [answers[(photo.key, model["version"])] for photo, _ in named]
    rows = table(named, results)
    if failed := len(named) - len(rows):
        first = next(result["error"] for result in results if result["status"] == "error")
        st.warning(f"{failed} of {len(named)} photos got no answer and are not counted: {first.get('detail')}.")
    if rows.empty:
        return
    metrics = compute_metrics(rows)
    _show_numbers(metrics)
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**Confusion** · rows are the truth")
        st.altair_chart(_confusion(rows), width="stretch")
    with right:
        st.markdown("**Reliability** · bars on the line keep what they promise")
        st.altair_chart(_reliability(metrics["reliability"]), width="stretch")
    st.markdown("**By class**")
    share = {name: st.column_config.NumberColumn(format="percent") for name in ("precision", "recall")}
    st.dataframe(class_table(metrics), column_config=share)
    _show_mistakes(rows, [photo for photo, _ in named])
    _show_downloads(rows, metrics, model)


def _photos(formats: Sequence[str]) -> list[Photo]:
    """The photos given; each is named by its path, which is never opened."""
    folder, packed = st.tabs(["Folder", "Zip"])
    given = [*folder.file_uploader("A folder with a folder of photos per class", accept_multiple_files="directory")]
    zipped = packed.file_uploader("The same as a zip", type="zip")
    known: dict[str, list[Photo]] = st.session_state.setdefault("labeled", {})
    kept: dict[str, list[Photo]] = {}  # hashing bytes again on each rerun would be felt
    for file in given:
        kept[file.file_id] = known.get(file.file_id) or [Photo(file.name, file.getvalue())]
    if zipped:
        kept[zipped.file_id] = known.get(zipped.file_id) or [Photo(*each) for each in unzip(zipped.getvalue(), formats)]
    st.session_state["labeled"] = kept
    return [photo for photos in kept.values() for photo in photos]


def _show_numbers(metrics: dict[str, Any]) -> None:
    columns = st.columns(6)
    columns[0].metric("Photos", metrics["images"])
    for column, label, value, digits in (
        (columns[1], "Right", metrics["top1"], 1),
        (columns[2], "Among the best five", metrics["top5"], 1),
        (columns[3], "Calibration error", metrics["ece"], 2),
        (columns[4], "Not sure", metrics["abstain"]["share"], 1),
        (columns[5], "Right where sure", metrics["abstain"]["precision"], 1),
    ):
        column.metric(label, "—" if value is None else f"{value:.{digits}%}")


def _confusion(rows: pd.DataFrame) -> alt.LayerChart:
    counts = rows.groupby(["label", "predicted"]).size().rename("photos").reset_index()
    counts["share"] = counts["photos"] / counts.groupby("label")["photos"].transform("sum")
    base = alt.Chart(counts).encode(
        x=alt.X("predicted:N", title="predicted"), y=alt.Y("label:N", title="truth"), tooltip=list(counts.columns)
    )
    shade = base.mark_rect().encode(color=alt.Color("share:Q", scale=alt.Scale(domain=[0, 1]), legend=None))
    light = alt.condition("datum.share > 0.5", alt.value("white"), alt.value("black"))
    chart: alt.LayerChart = shade + base.mark_text().encode(text="photos:Q", color=light)
    return chart


def _reliability(diagram: list[dict[str, Any]]) -> alt.LayerChart:
    scale = alt.Scale(domain=[0, 1])
    bars = (
        alt.Chart(pd.DataFrame(diagram))
        .mark_bar()
        .encode(
            x=alt.X("from:Q", scale=scale, title="best score"),
            x2="to:Q",
            y=alt.Y("accuracy:Q", scale=scale, title="share that was right"),
            opacity=alt.Opacity("images:Q", legend=None, scale=alt.Scale(range=[0.3, 1])),
            tooltip=["confidence", "accuracy", "images"],
        )
    )
    ideal = alt.Chart(pd.DataFrame({"x": [0, 1], "y": [0, 1]})).mark_line(strokeDash=[4, 4], color="gray")
    chart: alt.LayerChart = bars + ideal.encode(x="x:Q", y="y:Q")
    return chart


def _show_mistakes(rows: pd.DataFrame, photos: Sequence[Photo]) -> None:
    wrong = rows[~rows["right"]].sort_values("score", ascending=False, kind="stable").head(MISTAKES)
    st.markdown(f"**Worst mistakes** · {int((~rows['right']).sum())} in all")
    places = list(wrong.index)
    for first in range(0, len(places), COLUMNS):
        for column, i in zip(st.columns(COLUMNS), places[first : first + COLUMNS], strict=False):
            picture = open_upright(photos[i].data, THUMBNAIL_PX)
            if picture:
                column.image(picture, width="stretch")
            column.caption(f"{wrong.loc[i, 'label']} → **{wrong.loc[i, 'predicted']}** {wrong.loc[i, 'score']:.0%}")


def _show_downloads(rows: pd.DataFrame, metrics: dict[str, Any], model: Json) -> None:
    evaluation = {"model": {name: model[name] for name in ("name", "version", "sha256")}, **metrics}
    csv, raw, _ = st.columns([1, 1, 4])
    csv.download_button("CSV", rows.to_csv(index=False), "evaluation.csv", "text/csv", icon=":material/download:")
    raw.download_button(
        "JSON", json.dumps(evaluation, indent=2), "evaluation.json", "application/json", icon=":material/download:"
    )
