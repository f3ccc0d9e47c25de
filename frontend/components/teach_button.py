"""The button Teach: new photos -> a head, with progress and errors."""

from __future__ import annotations

import streamlit as st

from frontend.api_client import Json, ProblemError
from frontend.components.problems import show_problem
from frontend.components.taught_pictures import remember
from frontend.components.teach_draft import Draft, Photos, drop_draft, head_name, is_replaced, requests_for
from frontend.heads_client import HeadsClient


def show_teach_button(heads: HeadsClient, head: Json | None, draft: Draft, served: Json, listing: Json) -> None:
    """Show the button with what it will do; after a click, teach the photos and open the head.

    Args:
        heads: The API.
        head: The head that gets the photos; None makes a new one.
        draft: The new photos.
        served: The response of ``GET /v1/models``.
        listing: The response of ``GET /v1/heads``.
    """
    photos = draft.photos()
    st.button("Teach", type="primary", icon=":material/school:", width="stretch", on_click=_want, args=(draft,))
    st.caption(_advice(head, photos))
    if draft.is_wanted:
        draft.is_wanted = False
        problem = draft.class_problems(head) or (head is None and draft.title_problem(own_names(listing)))
        if problem:
            st.error("Something is missing: see the red lines.", icon=":material/warning:")
        elif photos:
            _teach(heads, head, draft, served, listing["limits"])
    if draft.problem:
        show_problem(draft.problem)


def own_names(listing: Json) -> set[str]:
    """Return the names of the user's heads."""
    return {head["name"] for head in listing["heads"] if head["mine"]}


def _want(draft: Draft) -> None:
    draft.is_checked = draft.is_wanted = True
    draft.problem = None


def _advice(head: Json | None, photos: Photos) -> str:
    count = sum(map(len, photos.values()))
    if not count:
        return "Add photos to at least two classes." if head is None else "To teach more, add photos first."
    text = "1 new photo" if count == 1 else f"{count} new photos"
    if is_replaced(head) and len(photos) == 1:
        return f"{text} of one class: the head will only tell whether a photo is like these."
    return f"{text}. This takes a few seconds."


def _teach(heads: HeadsClient, head: Json | None, draft: Draft, served: Json, limits: Json) -> None:
    requests = requests_for(draft.photos(), limits)
    total = sum(len(group) for photos in requests for group in photos.values())
    name = head["name"] if head else head_name(draft.title)
    done, before = 0, head
    bar = st.progress(0.0, f"Sending {total} photos")
    try:
        with st.spinner("Teaching…", show_time=True):
            for number, photos in enumerate(requests):
                if number == 0 and head is None:
                    after = heads.create(name, photos)
                elif number == 0 and head and is_replaced(head):
                    after, before = heads.replace(name, head["etag"], photos), None
                else:
                    after = heads.add(name, photos)
                remember(before, after, photos, served["limits"])
                draft.forget(photos)
                before = after
                done += sum(map(len, photos.values()))
                bar.progress(done / total, f"{done} of {total} photos taught")
    except ProblemError as error:
        draft.problem = error.problem
        if done == 0 or head:
            return
    finally:
        bar.empty()
    if head is None:
        _open(name, draft)
    draft.is_checked = False
    st.rerun()


def _open(name: str, draft: Draft) -> None:
    """Move the draft of a new head to the head: if a later request failed, its photos are still there."""
    drafts = st.session_state["teach-drafts"]
    drafts[name] = draft
    drop_draft(None)
    st.query_params["head"] = name
