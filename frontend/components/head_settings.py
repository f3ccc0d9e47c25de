"""Use a head elsewhere: programs, export; share it, roll it back, delete it."""

from __future__ import annotations

from functools import partial

import streamlit as st

from frontend.api_client import ApiClient, Json, ProblemError
from frontend.components.downloads import DOWNLOAD_ICON
from frontend.components.head_changes import change, mark_seen, seen_etag
from frontend.components.markdown import escape_markdown
from frontend.components.problems import show_problem
from frontend.components.teach_draft import drop_draft
from frontend.head_programs import head_programs
from frontend.heads_client import HeadsClient

EXPORTS = {  # format -> suffix of the file, label of the button
    "onnx": ("onnx", "ONNX, for onnxruntime and other programs"),
    "safetensors": ("zip", "Weights and card, for serve-app run --weights"),
}
MIN_CLASSES = 2  # of a model that the service serves


def show_programs(client: ApiClient, head: Json) -> None:
    """Show programs that classify with this head."""
    programs = head_programs(client.public_url, head["name"], client.needs_key)
    for tab, text in zip(st.tabs(list(programs)), programs.values(), strict=True):
        tab.code(text, language=None, wrap_lines=True)  # no language: see one_photo.py


def show_export(heads: HeadsClient, head: Json) -> None:
    """Offer the head with its backbone as a file."""
    if head["status"] == "backbone_changed":
        st.caption("Teach it again first: the network that it belongs to does not serve any more.")
        return
    st.caption("One file with the network and these classes. Making it takes up to a minute.")
    with st.container(horizontal=True):
        for format, (suffix, label) in EXPORTS.items():
            if format == "safetensors" and len(head["labels"]) < MIN_CLASSES:
                continue
            load = partial(heads.export, head["name"], format)  # Streamlit calls it on a click
            st.download_button(label, load, f"{head['name']}.{suffix}", icon=DOWNLOAD_ICON, on_click="ignore")


def show_settings(heads: HeadsClient, head: Json) -> None:
    """Show who may use the head, its earlier versions, and the button that deletes it."""
    name = head["name"]
    public = st.toggle(
        "Other API keys may use it",
        head["public"],
        key=f"share-{name}-{head['etag']}",
        help="They may classify with it and read how good it is. They may not change it or see its photos.",
    )
    if public != head["public"]:
        change(head, "Saving…", lambda etag: heads.share(name, etag, public))
    earlier = [version for version in reversed(head["versions"]) if version != head["version"]]
    if earlier:
        version = st.selectbox("An earlier version", earlier, key=f"versions-{name}")
        if st.button("Serve this version again", icon=":material/history:"):
            change(head, "Going back…", lambda etag: heads.roll_back(name, etag, version))
    else:
        st.caption("There is no earlier version to go back to.")
    if st.button("Delete this head…", icon=":material/delete_forever:"):
        _confirm_delete(heads, head)


@st.dialog("Delete this head?")
def _confirm_delete(heads: HeadsClient, head: Json) -> None:
    name, photos = escape_markdown(head["name"]), head["report"]["photos"]
    st.markdown(
        f"**{name}** was taught with {photos} photos. All of its versions are deleted with everything that is "
        "stored about these photos. Programs that use it stop working. Nobody can undo this."
    )
    if not st.button(f"Delete {name}", type="primary", icon=":material/delete_forever:"):
        return
    try:
        with st.spinner("Deleting…"):
            heads.delete(head["name"], seen_etag(head))
    except ProblemError as error:
        mark_seen(head)
        show_problem(error.problem)
        return
    drop_draft(head["name"])
    st.query_params.clear()
    st.rerun()
