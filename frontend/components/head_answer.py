"""What a head says about a photo."""

from __future__ import annotations

import streamlit as st

from frontend.api_client import Json, Photo
from frontend.components.heat_map import crop_fraction, overlay
from frontend.components.markdown import escape_markdown
from frontend.components.pictures import Picture

MAP_OPACITY = 0.6
MAX_BARS = 5


def show_answer(answer: Json, labels: list[str]) -> None:
    """Show a head's verdict in words and its scores as bars; ``labels`` are the head's classes."""
    predictions = answer["predictions"]
    best = predictions[0]
    label, score = escape_markdown(best["label"]), f"{best['score']:.0%}"
    if answer["none_of_these"]:
        names = ", ".join(escape_markdown(name) for name in labels[:MAX_BARS]) + (
            " …" if len(labels) > MAX_BARS else ""
        )
        st.warning(
            f"**None of these.** It is not like any photo that you taught ({names}). The nearest class is {label}.",
            icon=":material/block:",
        )
    elif len(labels) == 1:
        st.success(f"**{label}**: it is like the taught photos.", icon=":material/check_circle:")
        return
    elif answer["uncertainty"]["abstain"]:
        second = predictions[1]
        other = f"{escape_markdown(second['label'])} ({second['score']:.0%})"
        st.warning(f"**Not sure**: {label} ({score}) or {other}?", icon=":material/help:")
    else:
        st.success(f"**{label}** · {score}", icon=":material/check_circle:")
    if len(labels) > 1:
        for prediction in predictions[:MAX_BARS]:
            st.progress(prediction["score"], f"{escape_markdown(prediction['label'])} · {prediction['score']:.0%}")


def verdict(answer: Json) -> str:
    """Return what a head says in a few words."""
    best = answer["predictions"][0]
    if answer["none_of_these"]:
        return "none of these"
    unsure = "not sure: " if answer["uncertainty"]["abstain"] else ""
    return f"{unsure}{best['label']} {best['score']:.0%}"


def show_map(picture: Picture, photo: Photo, answer: Json, model: Json) -> None:
    """Show which places of the photo speak for the head's class."""
    shown, explanation = picture.open(), answer["explanation"]
    if shown is None or explanation is None:
        return
    label = explanation["label"]
    st.image(
        overlay(shown, explanation["values"], crop_fraction(model), MAP_OPACITY),
        f"These places speak for “{escape_markdown(label)}”",
        "stretch",
        alt=f"The photo {photo.name} with the places marked that speak for {label}",
    )
