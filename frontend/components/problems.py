"""The API's errors (RFC 9457 problem+json) as text on a page."""

from __future__ import annotations

import streamlit as st

from frontend.api_client import Json
from frontend.components.markdown import escape_markdown


def show_problem(problem: Json, name: str | None = None, icon: str = ":material/warning:") -> None:
    """Show a problem's title and detail, when to retry, and the name of the file that it concerns."""
    subject = f"**{escape_markdown(name)}** · " if name else ""
    seconds = problem.get("retry_after_s")
    retry = f" (retry in {seconds} s)" if seconds else ""
    title, detail = escape_markdown(problem.get("title")), escape_markdown(problem.get("detail", ""))
    st.error(f"{subject}**{title}**: {detail}{retry}", icon=icon)
