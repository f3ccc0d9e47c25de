"""The API's errors (RFC 9457 problem+json) as text on a page."""

from __future__ import annotations

import streamlit as st

from frontend.api_client import Json
from frontend.components.markdown import escape_markdown

ADVICE = {  # what a visitor can do about a problem of one photo; other problems say it themselves
    "unsupported_image": "A zip of photos goes into the tab Zip.",
    "invalid_image": "Open it in a photo program, save it as JPEG and choose it again.",
    "image_too_large": "Make it smaller in a photo program and choose it again.",
    "too_large": "Make it smaller in a photo program and choose it again.",
    "server_down": "Wait a moment and try again.",
    "stream_ended": "Wait a moment and try again.",
}


def show_problem(problem: Json, name: str | None = None, icon: str = ":material/warning:") -> None:
    """Show a problem's title and detail, when to retry or what to do, and the name of the file that it concerns."""
    subject = f"**{escape_markdown(name)}** · " if name else ""
    seconds = problem.get("retry_after_s")
    retry = f" (retry in {seconds} s)" if seconds else ""
    title, detail = escape_markdown(problem.get("title")), escape_markdown(problem.get("detail", ""))
    advice = f". {ADVICE[problem['code']]}" if name and problem.get("code") in ADVICE else ""
    st.error(f"{subject}**{title}**: {detail}{retry}{advice}", icon=icon)
