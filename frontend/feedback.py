"""Was the answer right? Thumbs and the right class, under one photo's answer."""

from __future__ import annotations

import streamlit as st

from frontend.client import Client, Json, Photo, ProblemError

DOWN, UP = 0, 1  # what Streamlit's thumbs give


def show_feedback(client: Client, photo: Photo, result: Json, model: Json, kept: Json, key: str) -> None:
    """Ask, and send each change of mind at once.

    Args:
        client: To the API.
        photo: That was classified; it goes along where images are kept.
        result: Its answer.
        model: Its entry in ``/v1/models``.
        kept: ``feedback`` in ``/v1/models``.
        key: Keeps these widgets apart from others'.
    """
    best = result["predictions"][0]["label"]
    asked, answer = st.columns([1, 2], vertical_alignment="center")
    with asked:
        st.markdown(f"**Is it {best}?**")
        thumb = st.feedback("thumbs", key=f"{key}-thumb-{photo.key}")
    label = best if thumb == UP else None
    with answer:
        if thumb == DOWN:
            others = [each for each in _labels(client, model) if each != best]
            label = st.selectbox(
                "What is it?", others, None, placeholder="The right class", key=f"{key}-is-{photo.key}"
            )
    if thumb is not None:
        _send(client, photo if kept["keep_images"] and label else None, result["request_id"], thumb == UP, label)
    elif kept["keep_images"]:
        st.caption("With your answer the photo is kept, to train the model on.")


def _send(client: Client, photo: Photo | None, request_id: str, correct: bool, label: str | None) -> None:
    """Send a vote, unless it was the last one sent."""
    sent: dict[str, tuple[bool, str | None]] = st.session_state.setdefault("votes", {})
    if sent.get(request_id) != (correct, label):
        try:
            client.feedback(request_id, correct, label, photo)
        except ProblemError as error:
            st.error(f"Your answer could not be kept: {error}", icon=":material/warning:")
            return
        sent[request_id] = (correct, label)
    st.caption("Thank you." + (" The photo is kept with it." if photo else ""))


def _labels(client: Client, model: Json) -> list[str]:
    """The model's classes, asked for once a session."""
    known: dict[str, list[str]] = st.session_state.setdefault("labels", {})
    if model["version"] not in known:
        known[model["version"]] = sorted(client.labels(model["name"], model["variant"]))
    return known[model["version"]]
