"""Try a head: one photo from a file or the camera -> what the head says about it, and the right class where it errs."""

from __future__ import annotations

import streamlit as st

from frontend.api_client import Json, Photo
from frontend.components.burst_camera import take_photos
from frontend.components.head_answer import show_answer, show_map
from frontend.components.markdown import escape_markdown
from frontend.components.pictures import make_picture, show_picture
from frontend.components.problems import show_problem
from frontend.components.taught_classes import classify_taught
from frontend.components.taught_pictures import picture_of, show_gallery
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
    examples = {example["id"]: example for example in head["examples"]}
    similar = [examples[each["id"]] for each in answer["similar"] or () if each["id"] in examples]
    if similar:
        names = ", ".join(escape_markdown(example["class"]) for example in similar)
        st.markdown(f"The taught photos that are most like it: {names}")
        show_gallery([(picture_of(heads, each), f"Taught photo of {each['class']}") for each in similar], "similar")
    if head["mine"]:
        _ask_right_class(head, photo, served)


def _ask_right_class(head: Json, photo: Photo, served: Json) -> None:
    """Offer to put the photo among the new ones of the class that it has; the next click on Teach adds it."""
    key = f"try-{head['name']}-{photo.key}"
    classes = {each.name: each for each in get_draft(head).classes if each.is_taught}
    if holder := next((each for each in classes.values() if photo in each.photos), None):
        shown = escape_markdown(holder.name)
        st.success(f"It is a new photo of **{shown}** now. Press Teach.", icon=":material/check:")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox("Not right? Then it is …", classes, None, placeholder="the right class", key=f"{key}-is")
        if st.button("Teach it this", key=f"{key}-teach", disabled=name is None) and name:
            classes[name].add([photo], served["limits"])
            st.rerun()  # the whole page, which shows the class with its new photo
