"""One photo: predictions, heat map, timings, code snippets."""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from frontend.api_client import ApiClient, Json, Photo, failed, size_problem
from frontend.components.feedback import show_feedback
from frontend.components.heat_map import overlay
from frontend.components.markdown import escape_markdown
from frontend.components.pictures import Picture, make_picture, show_picture
from frontend.components.problems import show_problem

PHASES = ("decode", "queue", "model")


def show_one(client: ApiClient, photo: Photo, served: Json, key: str = "one") -> None:
    """Classify one photo and show its result.

    ``served`` is the response of ``GET /v1/models``; ``key`` is the prefix of the widgets' keys, which a page needs
    where it shows several photos.
    """
    model = served["models"][0]
    chart_key = f"{key}-bars-{photo.key}"
    if problem := size_problem(photo, served["limits"]):
        result = failed(0, photo, problem)
    else:
        result = _result(client, photo, model, _clicked_class(chart_key))
    picture = make_picture(photo, served["limits"])
    if result["status"] == "error":
        show_problem(result["error"], photo.name)
        if picture.jpeg:
            show_picture(picture, escape_markdown(photo.name), width=320)
        return
    best = result["predictions"][0]
    label = escape_markdown(best["label"])
    if result["uncertainty"]["abstain"]:
        st.warning(
            f"**Not sure.** The most likely class, {label}, has a confidence of only {best['score']:.0%}. "
            "The photo may show something that the model has no class for.",
            icon=":material/help:",
        )
    else:
        st.success(f"**{label}** · {best['score']:.1%}", icon=":material/check_circle:")
    pictures, predictions = st.columns([3, 2], gap="large")
    with pictures:
        _show_pictures(picture, result, model, key)
    with predictions:
        st.markdown("**Top classes** · click a bar for its heat map")
        st.altair_chart(_bars(result), on_select="rerun", key=chart_key, width="stretch")
        _show_timings(result)
        if settings := served.get("feedback"):
            show_feedback(client, photo, result, model, settings, key)
    _show_snippets(client, photo, result)


def _result(client: ApiClient, photo: Photo, model: Json, explain_class: int | None) -> Json:
    """Return the photo's result, from the session's cache or from the API; retryable errors are not cached."""
    cache: dict[Any, Json] = st.session_state.setdefault("explained-results", {})
    key = (photo.key, model["version"], explain_class)
    if key not in cache:
        with st.spinner("Classifying…"):
            result = client.classify(photo, explain_class)
        if result["status"] == "error" and result["error"].get("retryable"):
            return result
        cache[key] = result
    return cache[key]


def _clicked_class(chart_key: str) -> int | None:
    """Return the class id of the bar that was clicked last."""
    selected = st.session_state.get(chart_key, {}).get("selection", {}).get("bar") or []
    return int(selected[0]["class_id"]) if selected else None


def _show_pictures(picture: Picture, result: Json, model: Json, key: str) -> None:
    if (shown := picture.open()) is None:
        show_picture(picture)
        return
    explanation, info = result["explanation"], result["image"]
    crop_fraction = model["transform"]["crop_px"] / model["transform"]["resize_px"]
    opacity = st.slider("Heat map opacity", 0.0, 1.0, 0.6, 0.05, key=f"{key}-opacity")
    plain, heat = st.columns(2)
    plain.image(
        shown,
        caption=f"{escape_markdown(info['format'].upper())} · {info['width']} × {info['height']} px",
        width="stretch",
    )
    caption = f"Heat map for “{escape_markdown(explanation['label'])}” · the faded border is outside the model's crop"
    heat.image(overlay(shown, explanation["values"], crop_fraction, opacity), caption, width="stretch")


def _bars(result: Json) -> alt.LayerChart | alt.FacetChart:
    rows = pd.DataFrame(result["predictions"])
    rows["percent"] = rows["score"].map("{:.1%}".format)
    rows["explained"] = rows["class_id"] == result["explanation"]["class_id"]
    axis = alt.Axis(labelLimit=180, labelFontSize=13)
    base = alt.Chart(rows).encode(
        alt.X("score:Q", title=None, axis=None, scale=alt.Scale(domain=[0, 1.12])),
        alt.Y("label:N", sort=None, title=None, scale=alt.Scale(padding=0), axis=axis),
        tooltip=[alt.Tooltip("label:N"), alt.Tooltip("percent:N", title="score"), alt.Tooltip("class_id:Q")],
    )
    color = alt.condition("datum.explained", alt.value("#e4572e"), alt.value("#f3b49f"))
    bars = base.mark_bar(cornerRadius=3, cursor="pointer", height={"band": 0.7}).encode(color=color)
    # A bar of an unlikely class is a pixel wide; this transparent bar makes its whole line clickable.
    line = base.mark_bar(opacity=0.001, cursor="pointer", height={"band": 1})
    target = line.encode(x=alt.value(0), x2=alt.value("width"))
    text = base.mark_text(align="left", dx=5, fontSize=12).encode(text="percent:N")
    selection = alt.selection_point("bar", fields=["class_id"], on="click")
    return alt.layer(bars, text, target.add_params(selection), height=30 * len(rows))


def _show_timings(result: Json) -> None:
    times = [result["timings_ms"][phase] for phase in PHASES]
    phases = [f"{phase} {ms:.1f} ms" for phase, ms in zip(PHASES, times, strict=True)]
    rows = pd.DataFrame({"phase": phases, "ms": times, "order": range(len(PHASES))})
    colors = alt.Scale(domain=phases, range=["#f4b860", "#c9c5ba", "#e4572e"])
    legend = alt.Legend(orient="bottom", labelFontSize=13)
    bar = alt.Chart(rows, height=70).mark_bar(height=16)
    color = alt.Color("phase:N", scale=colors, title=None, legend=legend)
    st.markdown(f"**Time in the service** · {sum(times):.1f} ms, in a batch of {result['batch_size']}")
    chart = bar.encode(alt.X("ms:Q", axis=None), color=color, order="order:Q", tooltip=["phase:N"])
    st.altair_chart(chart, width="stretch")


def _show_snippets(client: ApiClient, photo: Photo, result: Json) -> None:
    curl, python, raw = st.tabs(["curl", "Python", "JSON"])
    curl.code(client.curl(photo.name), language="bash")
    python.code(client.python(photo.name), language="python")
    raw.code(json.dumps(result, indent=2), language="json", height=300)
