"""One photo: predictions, heat map, timings, code snippets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import altair as alt
import pandas as pd
import streamlit as st

from frontend.api_client import ApiClient, Json, Photo
from frontend.components.certainty import show_certainty
from frontend.components.downloads import offer_csv_and_json, to_csv
from frontend.components.feedback import show_feedback
from frontend.components.heat_map import crop_fraction, overlay
from frontend.components.markdown import escape_markdown
from frontend.components.pictures import Picture, make_picture, show_picture
from frontend.components.problems import show_problem
from frontend.components.session_results import kept_result
from frontend.components.taught_classes import show_taught_classes

# Every color has a contrast of 3 to the background of both themes (WCAG 2.2, 1.4.11).
ACCENT, NEUTRAL = "#e4572e", "#8a857c"
PHASES = {"decode": "#3b82f6", "queue": NEUTRAL, "model": ACCENT}


def show_one(client: ApiClient, photo: Photo, served: Json, taught: Sequence[Json] = (), key: str = "one") -> None:
    """Classify one photo and show its result.

    ``served`` is the response of ``GET /v1/models``, ``taught`` are the heads of it that are used too; ``key`` is the
    prefix of the widgets' keys, which a page needs where it shows several photos.
    """
    model = served["models"][0]
    select_key = f"{key}-class-{photo.key}"
    result = _result(client, photo, served, None)
    picture = make_picture(photo, served["limits"])
    if result["status"] == "error":
        show_problem(result["error"], photo.name)
        if result["error"].get("retryable"):
            st.button("Try again", key=f"{key}-retry", icon=":material/refresh:")  # a click runs the script again
        if picture.jpeg:
            show_picture(picture, escape_markdown(photo.name), width=320, alt=f"Your photo {photo.name}")
        return
    show_certainty(result)
    explained = _explain(client, photo, result, served, st.session_state.get(select_key))
    pictures, predictions = st.columns([3, 2], gap="large")
    with pictures:
        _show_pictures(picture, photo, explained, model, key)
    with predictions:
        show_taught_classes(client, photo, served, taught)
        _show_classes(explained, select_key)
        _show_timings(result)
        if settings := served.get("feedback"):
            show_feedback(client, photo, result, model, settings, key)
    _show_snippets(client, photo, result)


def _result(client: ApiClient, photo: Photo, served: Json, explain_class: int | None) -> Json:
    key = (served["models"][0]["version"], explain_class)
    return kept_result(photo, served, key, lambda: client.classify(photo, explain_class))


def _explain(client: ApiClient, photo: Photo, result: Json, served: Json, class_id: int | None) -> Json:
    """Return the photo's result with the heat map of a class; show the error and the first map if that fails."""
    if class_id in (None, result["explanation"]["class_id"]):
        return result
    explained = _result(client, photo, served, class_id)
    if explained["status"] == "error":
        show_problem(explained["error"], photo.name)
        return result
    return explained


def _show_pictures(picture: Picture, photo: Photo, result: Json, model: Json, key: str) -> None:
    if (shown := picture.open()) is None:
        show_picture(picture)
        return
    explanation, info = result["explanation"], result["image"]
    opacity = st.slider("Heat map opacity", 0.0, 1.0, 0.6, 0.05, key=f"{key}-opacity")
    plain, heat = st.columns(2)
    caption = f"{escape_markdown(info['format'].upper())} · {info['width']} × {info['height']} px"
    with plain:
        show_picture(picture, caption, alt=f"Your photo {photo.name}")
    label = explanation["label"]
    heat.image(
        overlay(shown, explanation["values"], crop_fraction(model), opacity),
        f"Heat map for “{escape_markdown(label)}” · the faded border is outside the model's crop",
        "stretch",
        alt=f"Your photo with the places marked that speak for {label}",
    )


def _show_classes(result: Json, select_key: str) -> None:
    """Show the likely classes as bars; a click on a bar, or the select below for keyboards, changes the heat map."""
    labels = {prediction["class_id"]: prediction["label"] for prediction in result["predictions"]}
    chart_key = f"{select_key}-bars"

    def select_clicked() -> None:
        if clicked := st.session_state[chart_key].selection.get("bar"):
            st.session_state[select_key] = int(clicked[0]["class_id"])

    st.markdown("**Top classes** · click a bar for its heat map")
    st.altair_chart(_bars(result), on_select=select_clicked, key=chart_key, width="stretch")
    st.selectbox("Heat map for", labels, format_func=labels.__getitem__, key=select_key)


def _bars(result: Json) -> alt.LayerChart | alt.FacetChart:
    rows = pd.DataFrame(result["predictions"])
    # The score stands in the axis label: Streamlit gives labels, but no other text, the color of the theme.
    rows["text"] = rows["label"] + rows["score"].map("  {:.1%}".format)
    rows["explained"] = rows["class_id"] == result["explanation"]["class_id"]
    axis = alt.Axis(labelLimit=200, labelFontSize=13)
    base = alt.Chart(rows).encode(
        alt.X("score:Q", title=None, axis=None, scale=alt.Scale(domain=[0, 1])),
        alt.Y("text:N", sort=None, title=None, scale=alt.Scale(padding=0), axis=axis),
        tooltip=[alt.Tooltip("text:N", title="class"), alt.Tooltip("class_id:Q")],
    )
    color = alt.condition("datum.explained", alt.value(ACCENT), alt.value(NEUTRAL))
    bars = base.mark_bar(cornerRadius=3, cursor="pointer", height={"band": 0.7}).encode(color=color)
    # A bar of an unlikely class is a pixel wide; this transparent bar makes its whole line clickable.
    line = base.mark_bar(opacity=0.001, cursor="pointer", height={"band": 1})
    target = line.encode(x=alt.value(0), x2=alt.value("width"))
    selection = alt.selection_point("bar", fields=["class_id"], on="click")
    return alt.layer(bars, target.add_params(selection), height=30 * len(rows))


def _show_timings(result: Json) -> None:
    times = [result["timings_ms"][phase] for phase in PHASES]
    phases = [f"{phase} {ms:.1f} ms" for phase, ms in zip(PHASES, times, strict=True)]
    rows = pd.DataFrame({"phase": phases, "ms": times, "order": range(len(PHASES))})
    colors = alt.Scale(domain=phases, range=list(PHASES.values()))
    legend = alt.Legend(orient="bottom", columns=2, labelFontSize=13)
    bar = alt.Chart(rows, height=90).mark_bar(height=16)
    color = alt.Color("phase:N", scale=colors, title=None, legend=legend)
    st.markdown(f"**Time in the service** · {sum(times):.1f} ms, in a batch of {result['batch_size']}")
    chart = bar.encode(alt.X("ms:Q", axis=None), color=color, order="order:Q", tooltip=["phase:N"])
    st.altair_chart(chart, width="stretch")


def _show_snippets(client: ApiClient, photo: Photo, result: Json) -> None:
    st.markdown("**The same by program, and the result to copy**")
    curl, python, raw, table = st.tabs(["curl", "Python", "JSON", "CSV"])
    # No language: Streamlit's colors for code have too little contrast.
    curl.code(client.curl(photo.name), language=None, wrap_lines=True)
    python.code(client.python(photo.name), language=None, wrap_lines=True)
    raw.code(_to_json(result), language=None, wrap_lines=True)
    rows = pd.DataFrame(result["predictions"])
    table.code(to_csv(rows), language=None, wrap_lines=True)
    offer_csv_and_json(rows, result, "prediction")


def _to_json(result: Json) -> str:
    """Return indented JSON with each list of numbers on one line; texts have no line breaks and stay as they are."""
    return re.sub(r'\[\n[^][{}"]*\]', lambda numbers: " ".join(numbers[0].split()), json.dumps(result, indent=2))
