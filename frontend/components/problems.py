"""The API's errors (RFC 9457 problem+json) as text on a page."""

from __future__ import annotations

import streamlit as st

from frontend.api_client import Json


def show_problem(problem: Json, name: str | None = None, icon: str = ":material/warning:") -> None:
    """Show a problem's title and detail, when to retry, and the name of the file that it concerns."""
    subject = f"**{name}** · " if name else ""
    seconds = problem.get("retry_after_s")
    retry = f" (retry in {seconds} s)" if seconds else ""
    st.error(f"{subject}**{problem.get('title')}**: {problem.get('detail', '')}{retry}", icon=icon)
