"""Which pages there are, and what they share. Run: ``streamlit run frontend/app.py``."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from frontend.analytics import show_analytics
from frontend.batch import show_batch
from frontend.classify import show_classify
from frontend.client import Client, ProblemError, ServerDownError
from frontend.evaluate import show_evaluate
from frontend.sign_in import let_in, show_sign_out
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
            _offer_retry()
        except ProblemError as error:
            if error.problem.get("status") == 401:
                st.error(
                    f"**The API does not let this page in.** {error}. "
                    "Set API_KEY in the page's environment or secrets to a valid key.",
                    icon=":material/key_off:",
                )
            else:
                st.error(f"**{error.problem.get('title')}.** {error}.", icon=":material/warning:")
            _offer_retry()

    return page


def _offer_retry() -> None:
    if st.button("Try again", icon=":material/refresh:"):
        st.rerun()


def main() -> None:
    """Lay out the pages."""
    st.set_page_config(page_title="Image classification", page_icon=":material/image_search:", layout="wide")
    st.html("<style>.block-container {padding-top: 4rem}</style>")  # Streamlit leaves a third of a phone empty
    let_in()
    pages = [
        st.Page(
            guarded(show_classify), title="Classify", icon=":material/image_search:", url_path="classify", default=True
        ),
        st.Page(guarded(show_batch), title="Batch jobs", icon=":material/folder_zip:", url_path="batch"),
        st.Page(guarded(show_evaluate), title="Evaluate", icon=":material/rule:", url_path="evaluate"),
        st.Page(show_analytics, title="Analytics", icon=":material/bar_chart:", url_path="analytics"),
        st.Page(guarded(show_status), title="Status", icon=":material/monitor_heart:", url_path="status"),
    ]
    show_sign_out()
    st.navigation(pages, position="top").run()


main()
