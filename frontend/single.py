"""One photo: heat map, bars, times, snippets."""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from frontend.client import Client, Json, Photo
from frontend.feedback import show_feedback
from frontend.heatmap import open_upright, overlay

PHASES = ("decode", "queue", "model")


def show_single(client: Client, photo: Photo, served: Json, key: str = "single") -> None:
    """Show one photo's answer.

    Args:
        client: To the API.
        photo: To classify; answers are remembered for the session.
        served: What ``/v1/models`` says.
        key: Keeps this view's widgets apart from others'.
    """
    model = served["models"][0]
    chart_key = f"{key}-bars-{photo.key}"
    result = _answer(client, photo, model, _clicked(chart_key))
    picture = open_upright(photo.data)
    if result["status"] == "error":
        show_problem(photo.name, result["error"])
        if picture:
            st.image(picture, caption=photo.name, width=320)
        return
    best = result["predictions"][0]
    if result["uncertainty"]["abstain"]:
        st.warning(
            f"**Not sure.** The best guess, {best['label']}, has only {best['score']:.0%}. "
            "Take this answer with care: the photo may show something the model has no class for.",
            icon=":material/help:",
        )
    else:
        st.success(f"**{best['label']}** · {best['score']:.1%}", icon=":material/check_circle:")
    pictures, answers = st.columns([3, 2], gap="large")
    with pictures:
        _show_pictures(picture, result, model, key)
    with answers:
        st.markdown("**Top classes** · click a bar for its heat map")
        st.altair_chart(_bars(result), on_select="rerun", key=chart_key, width="stretch")
        _show_times(result)
        if kept := served.get("feedback"):
            show_feedback(client, photo, result, model, kept, key)
    _show_snippets(client, photo, result)


def show_problem(name: str, problem: Json) -> None:
    """Say what is wrong with one photo."""
    seconds = problem.get("retry_after_s")
    again = f" (there should be room in {seconds} s)" if seconds else ""
    st.error(f"**{name}**: {problem.get('title')}. {problem.get('detail', '')}{again}", icon=":material/warning:")


def _answer(client: Client, photo: Photo, model: Json, explain_class: int | None) -> Json:
    """The photo's result from the API, once per class explained."""
    remembered: dict[Any, Json] = st.session_state.setdefault("answers", {})
    key = (photo.key, model["version"], explain_class)
    if key not in remembered:
        with st.spinner("Classifying…"):
            result = client.classify(photo, explain_class)
        if result["status"] == "error" and result["error"].get("retryable"):
            return result
        remembered[key] = result
    return remembered[key]


def _clicked(chart_key: str) -> int | None:
    """The class whose bar was clicked last, if any."""
    chosen = st.session_state.get(chart_key, {}).get("selection", {}).get("bar") or []
    return int(chosen[0]["class_id"]) if chosen else None


def _show_pictures(picture: Any, result: Json, model: Json, key: str) -> None:
    if picture is None:
        st.info("This browser page cannot show the picture; the answer is not affected.")
        return
    explanation, transform = result["explanation"], model["transform"]
    opacity = st.slider("Heat map opacity", 0.0, 1.0, 0.6, 0.05, key=f"{key}-opacity")
    plain, heat = st.columns(2)
    info = result["image"]
    plain.image(picture, caption=f"{info['format'].upper()} · {info['width']} × {info['height']} px", width="stretch")
    heat.image(
        overlay(picture, explanation["values"], transform["crop_px"] / transform["resize_px"], opacity),
        caption=f"What speaks for “{explanation['label']}” · the model sees the bright part",
        width="stretch",
    )


def _bars(result: Json) -> Any:
    rows = pd.DataFrame(result["predictions"])
    rows["shown"] = rows["score"].map("{:.1%}".format)
    explained = result["explanation"]["class_id"]
    rows["explained"] = rows["class_id"] == explained
    base = alt.Chart(rows).encode(
        y=alt.Y(
            "label:N",
            sort=None,
            title=None,
            scale=alt.Scale(padding=0),
            axis=alt.Axis(labelLimit=180, labelFontSize=13),
        ),
        x=alt.X("score:Q", title=None, axis=None, scale=alt.Scale(domain=[0, 1.12])),
        tooltip=[alt.Tooltip("label:N"), alt.Tooltip("shown:N", title="score"), alt.Tooltip("class_id:Q")],
    )
    bars = base.mark_bar(cornerRadius=3, cursor="pointer", height={"band": 0.7}).encode(
        color=alt.condition("datum.explained", alt.value("#e4572e"), alt.value("#f3b49f"))
    )
    # Without this the thin bars of unlikely classes could hardly be hit.
    target = base.mark_bar(opacity=0.001, cursor="pointer", height={"band": 1}).encode(
        x=alt.value(0), x2=alt.value("width")
    )
    text = base.mark_text(align="left", dx=5, fontSize=12).encode(text="shown:N")
    picked = alt.selection_point("bar", fields=["class_id"], on="click")
    return alt.layer(bars, text, target.add_params(picked)).properties(height=30 * len(rows))


def _show_times(result: Json) -> None:
    times = result["timings_ms"]
    shown = [f"{phase} {times[phase]:.1f} ms" for phase in PHASES]
    rows = pd.DataFrame({"phase": shown, "ms": [times[phase] for phase in PHASES], "place": range(3)})
    colors = alt.Scale(domain=shown, range=["#f4b860", "#c9c5ba", "#e4572e"])
    chart = (
        alt.Chart(rows)
        .mark_bar(height=16)
        .encode(
            x=alt.X("ms:Q", axis=None),
            color=alt.Color("phase:N", scale=colors, title=None, legend=alt.Legend(orient="bottom", labelFontSize=13)),
            order="place:Q",
            tooltip=["phase:N"],
        )
        .properties(height=70)
    )
    total = sum(times[phase] for phase in PHASES)
    st.markdown(f"**Time in the service** · {total:.1f} ms, in a batch of {result['batch_size']}")
    st.altair_chart(chart, width="stretch")


def _show_snippets(client: Client, photo: Photo, result: Json) -> None:
    curl, python, raw = st.tabs(["curl", "Python", "JSON"])
    curl.code(client.curl(photo.name), language="bash")
    python.code(client.python(photo.name), language="python")
    raw.code(json.dumps(result, indent=2), language="json", height=300)
