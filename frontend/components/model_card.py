"""The served model's card in the side panel: name, accuracy, date, license, and its classes with a search."""

from __future__ import annotations

import streamlit as st

from frontend.api_client import ApiClient, Json
from frontend.components.markdown import escape_markdown

# What `serve-app train --recipe` measures.
WORDS = {
    "left-out sources": "photos from all sources, each by a model trained without that source",
    "same source": "held-out photos from sources that it was trained on",
}
MAX_LISTED = 200  # classes in the side panel; the search finds the others


def show_model_card(client: ApiClient, model: Json) -> None:
    """Show a model of ``GET /v1/models`` in the side panel."""
    with st.sidebar:
        st.header("The model", anchor=False)
        st.markdown("\n".join(f"- {line}" for line in _facts(model)))
        if model["notes"]:
            st.caption(escape_markdown(model["notes"]))
        with st.expander(f"Its {model['classes']:,} classes", icon=":material/list:"):
            _show_classes(client, model)
        if terms := model.get("licenses"):
            st.markdown("**License and terms**")
            lines = [f"- {escape_markdown(what)}: {escape_markdown(text)}" for what, text in terms.items()]
            st.caption("\n".join(lines))


def _facts(model: Json) -> list[str]:
    """Return name, accuracy on each data set that the card names, and date, as far as the card has them."""
    name, version = escape_markdown(model["name"]), escape_markdown(model["version"])
    facts = [f"**{name}**, version {version}, {model['classes']:,} classes"]
    for data, metrics in model["metrics"].items():
        if isinstance(metrics, dict) and "top1" in metrics:
            top5 = f", {metrics['top5']:.1%} among the first five" if "top5" in metrics else ""
            photos = f" ({metrics['images']:,} photos)" if "images" in metrics else ""
            facts.append(f"**{metrics['top1']:.1%}** right{top5} on {escape_markdown(_photos_of(data))}{photos}")
    if date := model["training"].get("date"):
        facts.append(f"trained on {escape_markdown(date)}")
    return facts


def _photos_of(data: str) -> str:
    """Return a card's name of a data set as words that follow "on"."""
    if data.startswith("without "):
        return f"photos of {data.removeprefix('without ')} by a model trained without them"
    return WORDS.get(data, data)


@st.fragment
def _show_classes(client: ApiClient, model: Json) -> None:
    """List the classes that contain the text of the search field, with their descriptions."""
    wanted = st.text_input("Search the classes", placeholder="cat", key="class-search").strip().lower()
    found = [
        (label, text) for label, text in list_classes(client, model).items() if wanted in f"{label} {text}".lower()
    ]
    if not found:
        st.caption("No class contains these letters: the model cannot name such a thing.")
        return
    lines = [f"- **{escape_markdown(label)}**{text and f': {escape_markdown(text)}'}" for label, text in found]
    st.markdown("\n".join(lines[:MAX_LISTED]))
    if len(found) > MAX_LISTED:
        st.caption(f"and {len(found) - MAX_LISTED:,} more: search for some letters of a name.")


def list_classes(client: ApiClient, model: Json) -> dict[str, str]:
    """Return the model's class names, sorted, with their descriptions; the session keeps them."""
    cache: dict[tuple[str, str], dict[str, str]] = st.session_state.setdefault("classes", {})
    key = (model["variant"], model["sha256"])
    if key not in cache:
        with st.spinner("Loading the classes…"):
            cache[key] = dict(sorted(client.classes(model["name"], model["variant"]).items()))
    return cache[key]
