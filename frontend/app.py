"""Entry script of the web page: ``streamlit run frontend/app.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from frontend.api_client import ApiClient, ProblemError, ServerDownError
from frontend.components.markdown import escape_markdown
from frontend.components.problems import show_problem
from frontend.components.sign_in import require_sign_in, show_sign_out
from frontend.views.analytics import show_analytics
from frontend.views.batch_jobs import show_batch_jobs
from frontend.views.classify import show_classify
from frontend.views.evaluate import show_evaluate
from frontend.views.status import show_status
from frontend.views.teach import show_teach

# Streamlit's default top padding leaves a third of a phone's screen empty. Its gray labels of charts have too little
# contrast on white, and its white text on primary buttons has too little on the dark theme's light color.
STYLE = """<style>
.block-container {padding-top: 4rem}
.role-axis-label text, .role-axis-title text, .role-legend-label text, .role-legend-title text {fill: currentColor}
@media (prefers-color-scheme: dark) {[data-testid=stBaseButton-primary], [data-testid=stBaseButton-primary]:hover
  {color: #14110d}}
</style>"""

ICON = str(Path(__file__).with_name("icon.svg"))  # browsers would load the picture of a material icon from Google


@st.cache_resource
def connect() -> ApiClient:
    """Return the API client that all sessions share."""
    return ApiClient()


def with_client(show: Callable[[ApiClient], None]) -> Callable[[], None]:
    """Return a page function that calls ``show`` with the API client and explains errors of the API."""

    def page() -> None:
        try:
            show(connect())
            return
        except ServerDownError as error:
            st.error(
                f"**The classification service is not responding.** {escape_markdown(error)}. "
                "Start it with `make run` or `serve-app run`, or set API_URL to the service's address.",
                icon=":material/power_off:",
            )
        except ProblemError as error:
            if error.problem.get("status") == 401:
                st.error(
                    f"**The API rejected this page's key.** {escape_markdown(error)}. "
                    "Set API_KEY to a valid key, in the page's environment or secrets.",
                    icon=":material/key_off:",
                )
            else:
                show_problem(error.problem)
        st.button("Retry", icon=":material/refresh:")  # a click runs the script again

    return page


def main() -> None:
    """Register the pages and run the one that the URL names."""
    st.set_page_config(page_title="Image classification", page_icon=ICON, layout="wide")
    st.html(STYLE)
    require_sign_in()
    classify = with_client(show_classify)
    pages = [
        st.Page(classify, title="Classify", icon=":material/image_search:", url_path="classify", default=True),
        st.Page(with_client(show_teach), title="Teach", icon=":material/school:", url_path="teach"),
        st.Page(with_client(show_batch_jobs), title="Batch jobs", icon=":material/folder_zip:", url_path="batch"),
        st.Page(with_client(show_evaluate), title="Evaluate", icon=":material/rule:", url_path="evaluate"),
        st.Page(with_client(show_analytics), title="Analytics", icon=":material/bar_chart:", url_path="analytics"),
        st.Page(with_client(show_status), title="Status", icon=":material/monitor_heart:", url_path="status"),
    ]
    show_sign_out()
    st.navigation(pages, position="top").run()


main()
