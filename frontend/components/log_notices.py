"""What the Analytics page says when there is nothing to draw, or rows cannot be written."""

from __future__ import annotations

import os

import streamlit as st

from frontend.api_client import ApiClient, ProblemError, ServerDownError
from frontend.components.markdown import escape_markdown

LOG_VARIABLE, FEEDBACK_VARIABLE = "PREDICTION_LOG", "FEEDBACK_FOLDER"
SWITCH_ON = (
    "To switch it on, start the service without `--no-log`, or set `prediction_log: {folder: predictions}` in the "
    "Ingress's `user_config`."
)
WILL_APPEAR = """
- images and errors per hour, and the time of each phase
- batch sizes, the most frequent classes, how confident the answers are
- votes, once somebody says under an answer whether it is right
- drift against an earlier day, from the second day on
"""


def show_state(client: ApiClient) -> bool:
    """Say so if the service writes no rows now, and return whether it does; old rows are shown all the same."""
    try:
        rows = client.status()["prediction_log"]
    except (ServerDownError, ProblemError) as error:
        st.warning(
            f"**The service does not respond, so nothing new appears here.** {escape_markdown(error)}.",
            icon=":material/power_off:",
        )
        return False
    if rows is None:
        st.info(
            f"**The prediction log is switched off, so nothing new appears here.** {SWITCH_ON}",
            icon=":material/toggle_off:",
        )
    elif rows["error"]:
        st.warning(
            f"**New images cannot be recorded: {escape_markdown(rows['error'])}.** Classification goes on. "
            f"{rows['buffered']:,} rows wait, {rows['dropped']:,} are lost.",
            icon=":material/warning:",
        )
    elif rows["dropped"]:
        st.caption(f"{rows['dropped']:,} rows are lost since the start of the service; its log says why.")
    return rows is not None and not rows["error"]


def show_empty(is_writing: bool) -> None:
    """Say what will appear after the first image; ``is_writing`` is the result of ``show_state``."""
    if is_writing:
        st.info(
            "**No image has been classified yet.** Classify a photo: within 15 s it appears here, by itself.",
            icon=":material/hourglass_empty:",
        )
    st.markdown(f"After the first image, this page shows:\n{WILL_APPEAR}")
    st.caption("A row per image is stored: class, score, size, times. No photos, no file names.")


def show_no_folder() -> None:
    """Say how this page finds the prediction log."""
    st.info(
        f"**This page has no prediction log.** {SWITCH_ON} A page that you start yourself needs its folder in the "
        f"environment variable {LOG_VARIABLE}.",
        icon=":material/bar_chart_off:",
    )


def feedback_folder() -> str | None:
    """Return the folder of the votes, or None if this page does not know it."""
    return os.environ.get(FEEDBACK_VARIABLE) or None
