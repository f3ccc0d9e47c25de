"""The photos of one class in large, each with buttons to move and to delete it."""

from __future__ import annotations

from functools import partial

import streamlit as st

from frontend.api_client import Json
from frontend.components.doubtful_photos import REFIT, delete_example, move_example
from frontend.components.head_changes import change
from frontend.components.markdown import escape_markdown
from frontend.components.pictures import THUMBNAIL_PX, grid, make_picture, show_picture
from frontend.components.taught_pictures import show_example
from frontend.components.teach_draft import DraftClass
from frontend.heads_client import HeadsClient

PHOTOS_PER_PAGE, COLUMNS = 12, 3


@st.dialog("Photos", width="large", on_dismiss="rerun")
def look_through(heads: HeadsClient, head: Json | None, each: DraftClass, served: Json) -> None:
    """Show the new photos of a class and, if the user owns the head, the taught ones."""
    st.subheader(escape_markdown(each.name) or f"Class {each.number}", anchor=False)
    taught = [example for example in head["examples"] if example["class"] == each.name] if head else []
    count = len(each.photos) + len(taught)
    if not count:
        st.caption("There are no photos any more.")
    pages = -(-count // PHOTOS_PER_PAGE)
    page = st.pagination(pages, key=f"look-{each.number}") if pages > 1 else 1
    first = (page - 1) * PHOTOS_PER_PAGE
    for column, index in grid(range(first, min(count, first + PHOTOS_PER_PAGE)), COLUMNS):
        with column.container(border=True):
            if index < len(each.photos):
                photo = each.photos[index]
                picture = make_picture(photo, served["limits"], THUMBNAIL_PX)
                show_picture(picture, f"new: {escape_markdown(photo.name)}", alt=f"New photo {photo.name}")
                key = f"look-{photo.key}"
                st.button("Take out", key=key, on_click=partial(each.photos.remove, photo))
            elif head:
                _show_taught(heads, head, taught[index - len(each.photos)])


def _show_taught(heads: HeadsClient, head: Json, example: Json) -> None:
    key = f"look-{example['id']}"
    show_example(heads, example, "taught", f"Taught photo of {example['class']}")
    others = [label for label in head["labels"] if label != example["class"]]
    if others:
        target = st.selectbox("Move to", others, None, key=f"{key}-to", placeholder="another class")
        if target:
            change(head, REFIT, partial(move_example, heads, head, example["id"], target))
    if st.button("Delete", key=f"{key}-delete", icon=":material/delete:"):
        change(head, REFIT, partial(delete_example, heads, head, example["id"]))
