"""The classes of a head: name, taught photos, new photos from files and from the camera."""

from __future__ import annotations

from functools import partial

import streamlit as st

from frontend.api_client import Json, Photo
from frontend.components.burst_camera import take_photos
from frontend.components.look_through import look_through
from frontend.components.markdown import escape_markdown
from frontend.components.pictures import THUMBNAIL_PX, make_picture
from frontend.components.taught_pictures import GALLERY_PHOTOS, picture_of, show_gallery
from frontend.components.teach_draft import Draft, DraftClass
from frontend.components.uploads import max_upload_mb, read_photo
from frontend.heads_client import HeadsClient

EXAMPLES = ("my cup", "other cups")  # shown in empty fields


def show_classes(heads: HeadsClient, head: Json | None, draft: Draft, served: Json) -> None:
    """Show a card for each class of a head, or of a new one, and a button for one more."""
    keys = {each.number: f"teach-{head['name'] if head else ''}-{each.number}" for each in draft.classes}
    for each in draft.classes:  # a problem of one field can come from a name that was typed into another one below
        each.name = st.session_state.get(f"{keys[each.number]}-name", each.name)
    problems = draft.class_problems(head) if draft.is_checked else {}
    for each in draft.classes:
        with st.container(border=True):
            _show_class(heads, head, draft, each, served, keys[each.number])
            if problem := problems.get(each.number):
                st.error(escape_markdown(problem), icon=":material/warning:")
    st.button("Add a class", icon=":material/add:", on_click=draft.add_class)


def _show_class(heads: HeadsClient, head: Json | None, draft: Draft, each: DraftClass, served: Json, key: str) -> None:
    if each.is_taught:
        st.markdown(f"**{escape_markdown(each.name)}**")
    else:
        hint = EXAMPLES[each.number - 1] if each.number <= len(EXAMPLES) else "another class"
        each.name = st.text_input(f"Name of class {each.number}", each.name, key=f"{key}-name", placeholder=hint)
    subject = escape_markdown(each.name) if each.name.strip() else f"class {each.number}"
    taught = [example for example in head["examples"] if example["class"] == each.name] if head else []
    _show_counts(taught, each)
    _show_pictures(heads, taught, each, served, key)
    _show_inputs(each, served, subject, key)
    with st.container(horizontal=True):
        if (each.photos or taught) and st.button(f"See and sort out the photos of {subject}", key=f"{key}-look"):
            look_through(heads, head, each, served)
        if not each.is_taught and len(draft.classes) > 1:
            st.button(f"Remove {subject}", key=f"{key}-drop", on_click=partial(draft.classes.remove, each))


def _show_counts(taught: list[Json], each: DraftClass) -> None:
    counts = [f"{len(taught)} taught"] if each.is_taught else []
    if each.photos:
        counts.append(f"**{len(each.photos)} new**")
    if counts:
        st.markdown(f"Photos: {', '.join(counts)}")


def _show_pictures(heads: HeadsClient, taught: list[Json], each: DraftClass, served: Json, key: str) -> None:
    """Show the newest photos of a class; the first ones stand for the others."""
    new = each.photos[::-1][:GALLERY_PHOTOS]
    with st.spinner("Making the pictures…"):
        pictures = [(make_picture(photo, served["limits"], THUMBNAIL_PX), f"New photo {photo.name}") for photo in new]
        old = taught[::-1][: GALLERY_PHOTOS - len(new)]
        seen = [(picture_of(heads, example), f"Taught photo of {each.name}") for example in old]
    show_gallery(pictures + seen, key)
    shown = sum(picture.jpeg is not None for picture, _ in pictures + seen)
    if shown and (hidden := len(each.photos) + len(taught) - shown):
        st.caption(f"and {hidden} more")
    elif seen and not shown:
        st.caption(f"Without pictures: {escape_markdown(seen[0][0].reason)}.")


def _show_inputs(each: DraftClass, served: Json, subject: str, key: str) -> None:
    limits = served["limits"]
    uploader = f"{key}-upload-{each.uploads}"

    def receive() -> None:
        files = st.session_state[uploader]
        each.uploads += 1  # the photos are in the draft now, and the uploader starts empty
        each.add((photo for file in files for photo in read_photo(file)), limits)

    def take(photos: list[Photo]) -> None:
        each.add(photos, limits)

    label, max_mb = f"Add photos of {subject}", max_upload_mb(limits)
    st.file_uploader(label, accept_multiple_files=True, key=uploader, max_upload_size=max_mb, on_change=receive)
    for name, reason in each.refused:
        text = f"**{escape_markdown(name)}** was not added: {escape_markdown(reason)}"
        st.error(text, icon=":material/warning:")
    take_photos(subject, key, take)
