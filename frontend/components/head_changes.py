"""Changes of a head: they apply to the state that the user saw, and are refused if somebody has changed it since."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from frontend.api_client import Json, ProblemError
from frontend.components.problems import show_problem

SEEN = "teach-seen-etags"  # by head: the state that the page showed when the user clicked


def seen_etag(head: Json) -> str:
    """Return the ETag of the state of a head that the user saw when he or she clicked."""
    etag: str = st.session_state.setdefault(SEEN, {}).get(head["name"], head["etag"])
    return etag


def mark_seen(head: Json) -> None:
    """Note that the page shows this state of a head now."""
    st.session_state.setdefault(SEEN, {})[head["name"]] = head["etag"]


def change(head: Json, busy: str, send: Callable[[str], object]) -> None:
    """Call ``send`` with the ETag that the user saw, and run the page again; show the problem here if that fails."""
    etag = seen_etag(head)
    try:
        with st.spinner(busy, show_time=True):
            send(etag)
    except ProblemError as error:
        mark_seen(head)
        show_problem(error.problem)
        if error.problem.get("code") == "precondition_failed":
            st.caption(
                "This page shows the newest state now. Look at it, and click again if you still want the change."
            )
        return
    st.session_state[SEEN].pop(head["name"], None)
    st.rerun()
