"""Which pages there are, and what they share. Run: ``streamlit run frontend/app.py``."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from frontend.classify import show_classify
from frontend.client import Client, ServerDownError
from frontend.status import show_status


@st.cache_resource
def connect() -> Client:
    """One client for all sessions."""
    return Client()


def guarded(show: Callable[[Client], None]) -> Callable[[], None]:
    """A page that says what to do when the API is down."""

    def page() -> None:
        client = connect()
        try:
            show(client)
        except ServerDownError as error:
            st.error(
                f"**The classification service is not answering.** {error}. "
                "Start it with `make run`, or set API_URL to where it runs.",
                icon=":material/power_off:",
            )
            if st.button("Try again", icon=":material/refresh:"):
                st.rerun()

    return page


def main() -> None:
    """Lay out the pages."""
    st.set_page_config(page_title="Image classification", page_icon=":material/image_search:", layout="wide")
    st.html("<style>.block-container {padding-top: 4rem}</style>")  # Streamlit leaves a third of a phone empty
    pages = [
        st.Page(
            guarded(show_classify), title="Classify", icon=":material/image_search:", url_path="classify", default=True
        ),
        st.Page(guarded(show_status), title="Status", icon=":material/monitor_heart:", url_path="status"),
    ]
    st.navigation(pages, position="top").run()


main()
