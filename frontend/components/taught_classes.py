"""What heads say about a photo: the results of a session, and the choice of heads beside the model's own classes."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from frontend.api_client import ApiClient, Json, Photo
from frontend.components.head_answer import show_answer
from frontend.components.markdown import escape_markdown
from frontend.components.problems import show_problem
from frontend.components.session_results import kept_result
from frontend.heads_client import HeadsClient


def choose_heads(served: Json) -> list[Json]:
    """Ask which taught classes to use beside the model's, if there are any; ``served`` is ``GET /v1/models``."""
    heads = {head["name"]: head for head in served.get("heads") or () if head["status"] == "ready"}
    if not heads:
        return []
    names = st.multiselect("Also use the taught classes of …", sorted(heads), placeholder="none", key="classify-heads")
    return [heads[name] for name in names]


def show_taught_classes(client: ApiClient, photo: Photo, served: Json, taught: Sequence[Json]) -> None:
    """Show what each of these heads says about a photo."""
    if not taught:
        return
    versions = {head["name"]: head["version"] for head in taught}
    result = classify_taught(HeadsClient(client), photo, versions, served)
    if result["status"] == "error":
        show_problem(result["error"], photo.name)
        return
    for head in taught:
        st.markdown(f"**{escape_markdown(head['name'])}**")
        show_answer(result["heads"][head["name"]], head["labels"])


def classify_taught(heads: HeadsClient, photo: Photo, versions: dict[str, str], served: Json) -> Json:
    """Return what heads say about a photo; ``versions`` are those of the heads, by name."""
    key = ("heads", *versions.items(), served["models"][0]["sha256"])
    return kept_result(photo, served, key, lambda: heads.classify(photo, versions))
