"""Taught photos that look wrong: probably in the wrong class, or nearly equal to a photo of another class."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from frontend.api_client import Json
from frontend.components.head_changes import change
from frontend.components.markdown import escape_markdown
from frontend.components.pictures import grid
from frontend.components.taught_pictures import picture_of, show_example
from frontend.heads_client import HeadsClient

MAX_SHOWN, CARD_COLUMNS = 6, 2  # of each kind; the next ones appear when these are decided
REFIT = "Teaching again…"


def show_doubtful_photos(heads: HeadsClient, head: Json) -> None:
    """Show the photos that the report doubts, side by side with another one, and what to do with them."""
    report, kept = head["report"], _kept(head)
    wrong = [each for each in report["label_errors"] if _error_key(each) not in kept]
    equal = [each for each in report["near_duplicates"] if tuple(each["example_ids"]) not in kept]
    if not wrong and not equal:
        return
    examples = {example["id"]: example for example in head["examples"]}
    st.subheader("Look at these photos", anchor=False)
    if wrong:
        st.markdown("These look as if they were in the **wrong class**.")
        for column, error in grid(wrong[:MAX_SHOWN], CARD_COLUMNS):
            with column.container(border=True):
                _show_label_error(heads, head, examples, error)
    if equal:
        st.markdown("These are **nearly equal**, and in different classes.")
        for column, pair in grid(equal[:MAX_SHOWN], CARD_COLUMNS):
            with column.container(border=True):
                _show_pair(heads, head, examples, pair)
    if hidden := max(0, len(wrong) - MAX_SHOWN) + max(0, len(equal) - MAX_SHOWN):
        st.caption(f"and {hidden} more, when these are decided")


def _show_label_error(heads: HeadsClient, head: Json, examples: dict[str, Json], error: Json) -> None:
    id, key = error["example_id"], f"doubt-{error['example_id']}"
    has, suggested = escape_markdown(error["class_name"]), escape_markdown(error["suggested"])
    photo, other = st.columns(2)
    with photo:
        show_example(heads, examples[id], f"in **{has}**", f"Doubtful photo of {error['class_name']}")
    with other:
        _show_any(heads, head, error["suggested"])
    st.markdown(f"Is this **{has}**? It looks like **{suggested}** ({error['score']:.0%}).")
    with st.container(horizontal=True):
        st.button(f"Keep in {has}", key=f"{key}-keep", on_click=_kept(head).add, args=(_error_key(error),))
        move = st.button(f"Move to {suggested}", key=f"{key}-move", icon=":material/arrow_forward:")
        delete = st.button("Delete", key=f"{key}-delete", icon=":material/delete:")
    if move:
        change(head, REFIT, partial(move_example, heads, head, id, error["suggested"]))
    if delete:
        change(head, REFIT, partial(delete_example, heads, head, id))


def _show_pair(heads: HeadsClient, head: Json, examples: dict[str, Json], pair: Json) -> None:
    ids, key = tuple(pair["example_ids"]), f"pair-{'-'.join(pair['example_ids'])}"
    for column, id, name in zip(st.columns(2), ids, pair["class_names"], strict=True):
        escaped = escape_markdown(name)
        with column:
            show_example(heads, examples[id], f"in **{escaped}**", f"One of two nearly equal photos, in {name}")
            if st.button(f"Delete the one in {escaped}", key=f"{key}-{id}", icon=":material/delete:"):
                change(head, REFIT, partial(delete_example, heads, head, id))
    st.button("Keep both", key=f"{key}-keep", on_click=_kept(head).add, args=(ids,))


def _show_any(heads: HeadsClient, head: Json, name: str) -> None:
    """Show a photo of a class for comparison, if possible one that the page has a picture of."""
    doubtful = {each["example_id"] for each in head["report"]["label_errors"]}
    others = [each for each in head["examples"] if each["class"] == name and each["id"] not in doubtful]
    if others:
        best = next((each for each in others if picture_of(heads, each).jpeg), others[0])
        show_example(heads, best, f"for comparison: one of **{escape_markdown(name)}**", f"A photo of {name}")


def move_example(heads: HeadsClient, head: Json, example: str, class_name: str, etag: str) -> None:
    """Move a taught photo to another class; see ``change``."""
    heads.move(head["name"], etag, example, class_name)


def delete_example(heads: HeadsClient, head: Json, example: str, etag: str) -> None:
    """Delete a taught photo; see ``change``."""
    heads.remove(head["name"], etag, example)


def _error_key(error: Json) -> tuple[str, ...]:
    return error["example_id"], error["class_name"], error["suggested"]


def _kept(head: Json) -> set[Any]:
    """Return what this session has decided to keep as it is."""
    kept: set[Any] = st.session_state.setdefault("kept-photos", {}).setdefault(head["name"], set())
    return kept
