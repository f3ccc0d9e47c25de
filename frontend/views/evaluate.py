"""The Evaluate page: labeled photos -> metrics of the served model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from frontend.api_client import ApiClient, Json, Photo
from frontend.components.confusion import confusion_chart
from frontend.components.downloads import offer_csv_and_json
from frontend.components.many_photos import classify_all
from frontend.components.markdown import escape_markdown
from frontend.components.pictures import THUMBNAIL_PX, grid, make_picture, show_picture
from frontend.components.uploads import ACCEPTED, max_upload_mb, read_once, read_photo, read_zip
from frontend.labeled_photos import LabelError, by_folder, class_table, compute_metrics, table
from frontend.zipped_photos import ZipError

MAX_MISTAKES, MISTAKE_COLUMNS = 24, 6
HELP = (
    "**A folder of folders**: each inner folder has the name of one of the model's classes and holds photos of that "
    "class. A zip of such a folder works too. The page classifies the photos and compares the predicted classes with "
    "the folders' names."
)


def show_evaluate(client: ApiClient) -> None:
    """Classify labeled photos and show the served model's metrics on them."""
    with st.spinner("Reaching the service…"):
        served = client.models()
    model = served["models"][0]
    st.title("How good is the model?")
    name, version = escape_markdown(model["name"]), escape_markdown(model["version"])
    st.caption(f"Model {name}, version {version} · {model['classes']} classes")
    try:
        uploaded = _photos(served)
        if not uploaded:
            st.info(HELP, icon=":material/folder_open:")
            return
        named = by_folder(uploaded, list(client.classes(model["name"], model["variant"])), ACCEPTED)
    except (LabelError, ZipError) as error:
        st.error(escape_markdown(error), icon=":material/warning:")
        return
    photos = [photo for photo, _ in named]
    results = classify_all(client, photos, served)
    rows = table(named, results)
    if failed := len(named) - len(rows):
        first = next(result["error"] for result in results if result["status"] == "error")
        reason = escape_markdown(first["detail"])
        st.warning(f"{failed} of {len(named)} photos failed and are not counted; the first error: {reason}.")
    if rows.empty:
        return
    metrics = compute_metrics(rows)
    _show_metrics(metrics)
    left, right = st.columns(2, gap="large")
    with left:
        _show_confusion(rows)
    with right:
        _show_reliability(metrics["reliability"])
    st.markdown("**By class**")
    percent = {name: st.column_config.NumberColumn(format="percent") for name in ("precision", "recall")}
    st.dataframe(class_table(metrics), column_config=percent)
    _show_mistakes(rows, photos, served["limits"])
    document = {"model": {name: model[name] for name in ("name", "version", "sha256")}, **metrics}
    offer_csv_and_json(rows, document, "evaluation")


def _photos(served: Json) -> list[Photo]:
    """Return the uploaded photos. A photo's name is its path in the folder or zip; the page never opens that path."""
    from_folder, from_zip = st.tabs(["Folder", "Zip"])
    files: list[Any] = from_folder.file_uploader(
        "A folder with a folder of photos per class",
        accept_multiple_files="directory",
        max_upload_size=max_upload_mb(served["limits"]),
    )
    archive = from_zip.file_uploader("A zip with a folder of photos per class", type="zip")
    readers = [(file, read_photo) for file in files]
    if archive:
        readers.append((archive, read_zip))
    with st.spinner("Reading the photos…"):
        return read_once("labeled-photos", readers)


def _show_metrics(metrics: dict[str, Any]) -> None:
    columns = st.columns(6)
    columns[0].metric("Photos", metrics["images"])
    for column, label, value, digits in (
        (columns[1], "Accuracy", metrics["top1"], 1),
        (columns[2], "Top-5 accuracy", metrics["top5"], 1),
        (columns[3], "Calibration error", metrics["ece"], 2),
        (columns[4], "Not sure", metrics["abstain"]["share"], 1),
        (columns[5], "Accuracy when sure", metrics["abstain"]["precision"], 1),
    ):
        column.metric(label, "—" if value is None else f"{value:.{digits}%}")


def _show_confusion(rows: pd.DataFrame) -> None:
    st.markdown("**Confusion matrix** · rows: true class, columns: predicted class")
    counts = rows.groupby(["label", "predicted"]).size().rename("photos").reset_index()
    st.altair_chart(confusion_chart(counts), width="stretch")


def _show_reliability(diagram: list[dict[str, Any]]) -> None:
    st.markdown("**Reliability diagram** · on the diagonal, confidence equals accuracy")
    scale = alt.Scale(domain=[0, 1])
    x = alt.X("from:Q", bin="binned", scale=scale, title="confidence")
    y = alt.Y("accuracy:Q", scale=scale, title="accuracy")
    opacity = alt.Opacity("images:Q", legend=None, scale=alt.Scale(range=[0.3, 1]))
    chart = alt.Chart(pd.DataFrame(diagram)).mark_bar()
    bars = chart.encode(x, y, opacity, x2="to:Q", tooltip=["confidence", "accuracy", "images"])
    diagonal = alt.Chart(pd.DataFrame({"x": [0, 1], "y": [0, 1]})).mark_line(strokeDash=[4, 4], color="gray")
    st.altair_chart(bars + diagonal.encode(x="x:Q", y="y:Q"), width="stretch")


def _show_mistakes(rows: pd.DataFrame, photos: Sequence[Photo], limits: Json) -> None:
    wrong = rows[~rows["right"]].sort_values("score", ascending=False, kind="stable")
    st.markdown(f"**Most confident mistakes** · {len(wrong)} mistakes in total")
    for column, i in grid(list(wrong.index[:MAX_MISTAKES]), MISTAKE_COLUMNS):
        label, predicted = escape_markdown(wrong.loc[i, "label"]), escape_markdown(wrong.loc[i, "predicted"])
        with column:
            show_picture(make_picture(photos[i], limits, THUMBNAIL_PX))
        column.caption(f"{label} → **{predicted}** {wrong.loc[i, 'score']:.0%}")
