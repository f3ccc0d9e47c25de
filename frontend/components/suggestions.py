"""Photos that others suggest for a head: its owner approves or rejects them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import streamlit as st

from frontend.api_client import Json, ProblemError
from frontend.components.head_answer import verdict
from frontend.components.head_changes import change
from frontend.components.markdown import escape_markdown
from frontend.components.pictures import grid, show_picture
from frontend.components.problems import show_problem
from frontend.components.taught_pictures import picture_of, show_similar
from frontend.heads_client import HeadsClient

MAX_SHOWN, CARD_COLUMNS = 6, 2  # the next ones appear when these are decided
CHECK = ":material/check:"


def show_suggestions(heads: HeadsClient, head: Json) -> None:
    """Show the owner what waits for approval, the oldest first, with what the head says about it."""
    if not head["suggestions"]:
        return
    try:
        waiting = heads.suggestions(head["name"])["suggestions"]
    except ProblemError as error:
        show_problem(error.problem)
        return
    if not waiting:
        return
    st.subheader(count_text(len(waiting)), anchor=False)
    st.markdown("Others say what these photos show. Approve a photo to teach it; reject it to delete it.")
    shown = waiting[:MAX_SHOWN]
    ids = [each["id"] for each in shown if _can_be_approved(each)]
    if len(ids) > 1 and st.button(f"Approve these {len(ids)}", icon=CHECK):
        _approve(heads, head, ids)
    for column, each in grid(shown, CARD_COLUMNS):
        with column.container(border=True):
            _show_suggestion(heads, head, each)
    if hidden := len(waiting) - len(shown):
        st.caption(f"and {hidden} more, when these are decided")


def count_text(waiting: int) -> str:
    """Return how many suggestions wait, in words."""
    return "1 suggestion waits" if waiting == 1 else f"{waiting} suggestions wait"


def _show_suggestion(heads: HeadsClient, head: Json, each: Json) -> None:
    name, sender = escape_markdown(each["class"]), escape_markdown(each["caller"] or "somebody")
    photo, text = st.columns(2)
    with photo:
        show_picture(picture_of(heads, each), alt=f"Photo that is suggested as {each['class']}")
    with text:
        st.markdown(f"Suggested as **{name}**")
        st.caption(f"by {sender} on {escape_markdown(each['added'][:10])}")
        _show_answer(heads, head, each)
    with st.container(horizontal=True):
        is_approved = st.button(
            f"Approve as {name}", key=f"approve-{each['id']}", icon=CHECK, disabled=not _can_be_approved(each)
        )
        is_rejected = st.button("Reject", key=f"reject-{each['id']}", icon=":material/delete:")
    if is_approved:
        _approve(heads, head, [each["id"]])
    if is_rejected:
        change(head, "Deleting…", lambda etag: heads.reject(head["name"], each["id"]))


def _show_answer(heads: HeadsClient, head: Json, each: Json) -> None:
    answer = each["answer"]
    if answer is None:
        advice = "Approve it to look at it again." if each["photo"] else "Reject it, and ask for the photo again."
        st.caption(f"The service has another model now than the one that saw this photo. {advice}")
        return
    st.markdown(f"The head says: **{escape_markdown(verdict(answer))}**")
    show_similar(heads, head, answer["similar"], "Most like it", f"suggestion-{each['id']}")


def _can_be_approved(each: Json) -> bool:
    return bool(each["answer"] or each["photo"])


def _approve(heads: HeadsClient, head: Json, ids: Sequence[str]) -> None:
    change(head, "Teaching again…", partial(_send_approval, heads, head, ids))


def _send_approval(heads: HeadsClient, head: Json, ids: Sequence[str], etag: str) -> None:
    heads.approve(head["name"], etag, ids)
