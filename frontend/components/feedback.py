"""Feedback on one prediction: thumbs, and the right class after a thumb down."""

from __future__ import annotations

import streamlit as st

from frontend.api_client import ApiClient, Json, Photo, ProblemError
from frontend.components.markdown import escape_markdown
from frontend.components.model_card import list_classes

DOWN, UP = 0, 1  # values of st.feedback("thumbs")


def show_feedback(client: ApiClient, photo: Photo, result: Json, model: Json, settings: Json, key: str) -> None:
    """Ask whether the prediction is right, and send each vote to the API at once.

    The photo is sent with a vote that names a class, where the service keeps images. ``settings`` are those of
    ``feedback`` in ``GET /v1/models``; ``key`` is the prefix of these widgets' keys.
    """
    best = result["predictions"][0]["label"]
    question, right_class = st.columns([1, 2], vertical_alignment="center")
    with question:
        st.markdown(f"**Is it {escape_markdown(best)}?**")
        thumb = st.feedback("thumbs", key=f"{key}-thumb-{photo.key}")
    label = best if thumb == UP else None
    with right_class:
        if thumb == DOWN:
            others = [label for label in list_classes(client, model) if label != best]
            hint = "Choose the right class"
            label = st.selectbox("What is it?", others, None, placeholder=hint, key=f"{key}-is-{photo.key}")
    if thumb is not None:
        _send(client, photo if settings["keep_images"] and label else None, result["request_id"], thumb == UP, label)
    elif settings["keep_images"]:
        st.caption("The service keeps the photo together with your feedback, as training data.")


def _send(client: ApiClient, photo: Photo | None, request_id: str, correct: bool, label: str | None) -> None:
    """Send a vote, unless it equals the last vote on this request: Streamlit reruns the script at every click."""
    sent: dict[str, tuple[bool, str | None]] = st.session_state.setdefault("votes", {})
    if sent.get(request_id) != (correct, label):
        try:
            with st.spinner("Sending your feedback…"):
                client.feedback(request_id, correct, label, photo)
        except ProblemError as error:
            st.error(f"Your feedback was not saved: {escape_markdown(error)}", icon=":material/warning:")
            return
        sent[request_id] = (correct, label)
    st.caption("Thank you." + (" The photo is saved with your feedback." if photo else ""))
