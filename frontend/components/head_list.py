"""The heads that this page's API key may use."""

from __future__ import annotations

import streamlit as st

from frontend.api_client import Json
from frontend.components.markdown import escape_markdown
from frontend.components.pictures import grid
from frontend.components.suggestions import count_text

COLUMNS, MAX_LABELS = 3, 6


def show_heads(heads: list[Json]) -> None:
    """Show a card for each head; its button opens it."""
    for column, head in grid(heads, COLUMNS):
        with column.container(border=True):
            name = escape_markdown(head["name"])
            st.markdown(f"**{name}**{badges(head)}")
            labels = [escape_markdown(label) for label in head["labels"]]
            st.markdown(", ".join(labels[:MAX_LABELS]) + (" …" if len(labels) > MAX_LABELS else ""))
            accuracy = f" · right for {head['accuracy']['accuracy']:.0%}" if head["accuracy"] else ""
            st.caption(f"{head['photos']} photos{accuracy}")
            if st.button(f"Open {name}", key=f"open-{head['name']}-{head['mine']}", width="stretch"):
                st.query_params["head"] = head["name"]
                st.rerun()


def badges(head: Json) -> str:
    """Return Markdown for what is special about a head."""
    texts = []
    if not head["mine"]:
        texts.append(" :gray-badge[of another API key]")
    elif head["public"]:
        texts.append(" :blue-badge[shared]")
    if head["suggestions"]:
        texts.append(f" :violet-badge[{count_text(head['suggestions'])}]")
    if head["status"] == "backbone_changed":
        texts.append(" :orange-badge[teach it again]")
    return "".join(texts)
