"""Try a head: one photo from a file or the camera -> what the head says about it, and the right class where it errs."""

from __future__ import annotations

import streamlit as st

from frontend.api_client import Json, Photo, ProblemError
from frontend.components.burst_camera import take_photos
from frontend.components.head_answer import show_answer, show_map
from frontend.components.markdown import escape_markdown
from frontend.components.pictures import make_picture, show_picture
from frontend.components.problems import show_problem
from frontend.components.taught_classes import classify_taught
from frontend.components.taught_pictures import show_similar
from frontend.components.teach_draft import get_draft
from frontend.components.uploads import max_upload_mb, read_photo
from frontend.heads_client import HeadsClient


@st.fragment
def show_try(heads: HeadsClient, head: Json, served: Json) -> None:
    """Ask for a photo and show its classes, the places that decide, and the taught photos that are most like it."""
    name = head["name"]
    store = f"try-{name}"

    def take(photos: list[Photo]) -> None:
        if photos:
            st.session_state[store] = photos[-1]

    def receive() -> None:
        if file := st.session_state[f"{store}-upload"]:
            take(read_photo(file))

    st.subheader("Try it", anchor=False)
    max_mb = max_upload_mb(served["limits"])
    st.file_uploader("A photo to try", key=f"{store}-upload", max_upload_size=max_mb, on_change=receive)
    take_photos("a photo to try", store, take, count=1)
    if photo := st.session_state.get(store):
        _show_result(heads, head, photo, served)


def _show_result(heads: HeadsClient, head: Json, photo: Photo, served: Json) -> None:
    result = classify_taught(heads, photo, {head["name"]: head["version"]}, served)
    if result["status"] == "error":
        show_problem(result["error"], photo.name)
        return
    answer, picture = result["heads"][head["name"]], make_picture(photo, served["limits"])
    show_answer(answer, head["labels"])
    plain, marked = st.columns(2)
    with plain:
        show_picture(picture, escape_markdown(photo.name), alt=f"The photo {photo.name} that you try")
    with marked:
        show_map(picture, photo, answer, served["models"][0])
    show_similar(heads, head, answer["similar"], "The taught photos that are most like it", "similar")
    if head["mine"]:
        _teach_right_class(head, photo, served)
    else:
        _suggest_right_class(heads, head, photo)


def _teach_right_class(head: Json, photo: Photo, served: Json) -> None:
    """Offer to put the photo among the new ones of the class that it has; the next click on Teach adds it."""
    classes = {each.name: each for each in get_draft(head).classes if each.is_taught}
    if holder := next((each for each in classes.values() if photo in each.photos), None):
        shown = escape_markdown(holder.name)
        st.success(f"It is a new photo of **{shown}** now. Press Teach.", icon=":material/check:")
    elif name := _ask_right_class(head, photo, "Teach it this"):
        classes[name].add([photo], served["limits"])
        st.rerun()  # the whole page, which shows the class with its new photo


def _suggest_right_class(heads: HeadsClient, head: Json, photo: Photo) -> None:
    """Offer to send the photo with its class to the owner of the head, who decides."""
    sent = st.session_state.setdefault("suggested", {})  # by head and photo: the class and the API's response
    key = (head["name"], photo.key)
    if key in sent:
        name, receipt = sent[key]
        if receipt["ids"]:
            st.success(f"Suggested as **{escape_markdown(name)}**. The owner decides.", icon=":material/check:")
        else:
            st.info("The owner has this photo already.", icon=":material/info:")
        return
    name = _ask_right_class(head, photo, "Suggest it to the owner")
    photo_too = "the photo and" if head["keeps_photos"] else "not the photo but"
    st.caption(
        f"The owner of these classes decides. Until then, or until it expires, the service keeps {photo_too} "
        "512 numbers that describe it."
    )
    if name:
        try:
            with st.spinner("Sending…"):
                sent[key] = name, heads.suggest(head["name"], photo, name)
        except ProblemError as error:
            show_problem(error.problem)
            return
        st.rerun()


def _ask_right_class(head: Json, photo: Photo, action: str) -> str | None:
    """Ask for the right class of a photo; return it after a click on the button."""
    key = f"try-{head['name']}-{photo.key}"
    with st.container(horizontal=True, vertical_alignment="bottom"):
        labels: list[str] = head["labels"]
        name = st.selectbox("Not right? Then it is …", labels, None, placeholder="the right class", key=f"{key}-is")
        return name if st.button(action, key=f"{key}-teach", disabled=name is None) else None
