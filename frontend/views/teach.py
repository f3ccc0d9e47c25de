"""The Teach page: photos by class -> a head, what its fit found out, and what to do with it.

All visitors of the page share its API key, and so its heads. The head's name in the URL keeps it across a reload.
"""

from __future__ import annotations

import streamlit as st

from frontend.api_client import ApiClient, Json, ProblemError
from frontend.components.doubtful_photos import show_doubtful_photos
from frontend.components.head_changes import mark_seen
from frontend.components.head_list import badges, show_heads
from frontend.components.head_report import show_accuracy, show_details, show_photos_to_add
from frontend.components.head_settings import show_export, show_programs, show_settings
from frontend.components.markdown import escape_markdown
from frontend.components.problems import show_problem
from frontend.components.suggestions import show_suggestions
from frontend.components.taught_pictures import STYLE
from frontend.components.teach_button import own_names, show_teach_button
from frontend.components.teach_classes import show_classes
from frontend.components.teach_draft import get_draft, head_name
from frontend.components.try_head import show_try
from frontend.heads_client import HeadsClient

HELP = """\
1. **Name** what you want to tell apart, such as *my cup* and *other cups*.
2. **Add photos** of each, from files or with the camera: 10 to 20 are enough for a start.
3. Press **Teach**. A few seconds later you see how often it is right, and can try it.
"""
VISITOR_PX = 640  # of what a head says to callers who cannot change it
BACKBONE_CHANGED = (
    "**The service has another model now than the one that this was taught with.** Add photos of every class again and "
    "press Teach; the classes keep their names."
)


def show_teach(client: ApiClient) -> None:
    """Show the list of heads and the form for a new one, or the head that the URL names."""
    heads = HeadsClient(client)
    st.html(STYLE)
    try:
        with st.spinner("Reaching the service…"):
            served, listing = client.models(), heads.list()
    except ProblemError as error:
        if error.problem.get("code") != "heads_off":
            raise
        st.title("Teach your own classes")
        st.info(
            "**Teaching is switched off.** The setting `heads: {folder: heads}` in the Ingress's `user_config` turns "
            "it on.",
            icon=":material/toggle_off:",
        )
        return
    if name := st.query_params.get("head"):
        _show_head(client, heads, name, served, listing)
    else:
        _show_start(heads, served, listing)


def _show_start(heads: HeadsClient, served: Json, listing: Json) -> None:
    st.title("Teach your own classes")
    draft = get_draft(None)
    if listing["heads"]:
        st.subheader("Taught already", anchor=False)
        show_heads(listing["heads"])
        st.subheader("Teach something new", anchor=False)
    st.markdown(HELP)
    with st.container(width=480):
        draft.title = st.text_input("A name for all of it", draft.title, placeholder="cups", key="teach-title")
        if (name := head_name(draft.title)) and name != draft.title:
            st.caption(f"Its name in links and programs: `{name}`")
        if draft.is_checked and (problem := draft.title_problem(own_names(listing))):
            st.error(problem, icon=":material/warning:")
    classes, action = st.columns([3, 2], gap="large")
    with classes:
        show_classes(heads, None, draft, served)
    with action:
        show_teach_button(heads, None, draft, served, listing)
        _show_privacy(listing["keep_photos"])


def _show_privacy(keep_photos: bool) -> None:
    kept = "The service keeps your photos" if keep_photos else "The service does not keep your photos"
    st.caption(
        f"{kept}; it keeps 512 numbers for each, which describe what it shows, until you delete them. "
        "Everybody who uses this page sees and can change what is taught here."
    )


def _show_head(client: ApiClient, heads: HeadsClient, name: str, served: Json, listing: Json) -> None:
    if st.button("All heads", icon=":material/arrow_back:", type="tertiary"):
        st.query_params.clear()
        st.rerun()
    try:
        head = heads.get(name)
    except ProblemError as error:
        st.title(escape_markdown(name), anchor=False)
        show_problem(error.problem, icon=":material/search_off:")
        return
    st.title(escape_markdown(head["name"]) + badges(head), anchor=False)
    report = head["report"]
    classes = "1 class" if len(head["labels"]) == 1 else f"{len(head['labels'])} classes"
    st.caption(f"A head with {classes}, taught with {report['photos']} photos. Keep this page's link to find it again.")
    if head["status"] == "backbone_changed":
        st.warning(BACKBONE_CHANGED, icon=":material/published_with_changes:")
    show_suggestions(heads, head)
    if head["mine"]:
        draft = get_draft(head)
        left, right = st.columns([3, 2], gap="large")
        with left:
            show_classes(heads, head, draft, served)
        with right:
            show_teach_button(heads, head, draft, served, listing)
    else:
        right = st.container(width=VISITOR_PX)
    with right:
        show_accuracy(report)
        if head["status"] == "ready":
            show_try(heads, head, served)
    show_doubtful_photos(heads, head)
    show_photos_to_add(heads, head)
    details, programs, export, settings = st.tabs(["How good is it", "Use it in a program", "Export", "Settings"])
    with details:
        show_details(report)
    with programs:
        show_programs(client, head)
    with export:
        show_export(heads, head)
    with settings:
        if head["mine"]:
            show_settings(heads, head)
        else:
            st.caption("This head belongs to another API key. Only its owner can change it.")
    mark_seen(head)
