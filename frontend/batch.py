"""The Batch page: a zip or a prefix becomes a job; how far it is, what failed, its results."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pandas as pd
import streamlit as st

from frontend.client import Client, Json, ProblemError

REFRESH_S = 1.0
PAGE_BYTES = 200 * 2**20  # .streamlit/config.toml: a page keeps an upload in memory
SHOWN = 1000  # failed files
HISTORY = 25
OPEN = ("queued", "running")
LOOKS = {
    "queued": ":gray-badge[:material/hourglass: waiting]",
    "running": ":blue-badge[:material/play_arrow: running]",
    "succeeded": ":green-badge[:material/check: done]",
    "failed": ":red-badge[:material/error: failed]",
    "cancelled": ":orange-badge[:material/cancel: cancelled]",
}
FILES = {"CSV": "csv", "JSON": "json", "JSON lines": "jsonl", "Parquet": "parquet"}


def show_batch(client: Client) -> None:
    """Show the form, the job that the URL names, and the jobs before.

    Raises:
        ServerDownError: The API does not answer.
    """
    st.title("Batch jobs")
    try:
        found = client.jobs()
    except ProblemError as error:
        if error.problem.get("code") != "jobs_off":
            raise
        st.info(f"**Batch jobs are switched off.** {str(error).capitalize()}.", icon=":material/toggle_off:")
        return
    _submit(client, found)
    if chosen := st.query_params.get("job"):
        _show_job(client, chosen)
    _show_history(found["jobs"], chosen)


def _submit(client: Client, found: Json) -> None:
    from_zip, from_prefix = st.tabs(["Zip", "Folder or bucket"])
    with from_zip:
        most = min(found["limits"]["max_zip_bytes"], PAGE_BYTES)
        uploaded = st.file_uploader("A zip of images", "zip", max_upload_size=most // 2**20, key=_upload_key())
        st.caption(f"Larger ones, up to {found['limits']['max_zip_bytes'] / 2**20:.0f} MB, go without this page:")
        st.code(client.curl_job("photos.zip"), language="bash", wrap_lines=True)
        if uploaded and st.button("Classify all of it", type="primary", icon=":material/play_arrow:"):
            with st.spinner("Sending it …"):
                _started(lambda: client.submit_zip(uploaded.name, uploaded))
    with from_prefix:
        if not found["sources"]:
            st.info("No folder and no bucket is open to jobs: `jobs: {sources: […]}` in the Ingress's `user_config`.")
            return
        st.caption("Open to jobs: " + " · ".join(f"`{source}`" for source in found["sources"]))
        source = st.text_input("Folder or prefix", found["sources"][0])
        if st.button("Classify all below it", icon=":material/play_arrow:"):
            _started(lambda: client.submit_prefix(source))


def _upload_key() -> str:
    return f"zip-{st.session_state.get('zips', 0)}"


def _started(submit: Callable[[], Json]) -> None:
    """Go to the new job, or say why there is none."""
    try:
        job = submit()
    except ProblemError as error:
        st.error(f"**{error.problem.get('title')}.** {error}.", icon=":material/warning:")
        return
    st.query_params["job"] = job["id"]
    st.session_state["zips"] = st.session_state.get("zips", 0) + 1  # another key empties the uploader
    st.rerun()


def _show_job(client: Client, job: str) -> None:
    try:
        state = client.job(job)
    except ProblemError as error:
        st.warning(f"**{error.problem.get('title')}.** {error}.", icon=":material/search_off:")
        return
    st.subheader(state["source"], anchor=False)
    if state["status"] in OPEN:
        _follow(client, job)
        return
    _show_progress(state)
    if state["error"]:
        st.error(state["error"], icon=":material/error:")
    _show_downloads(client, job)
    if state["progress"]["failed"]:
        _show_failed(client, job, state["progress"]["failed"])


@st.fragment(run_every=REFRESH_S)
def _follow(client: Client, job: str) -> None:
    """Show a job under way again and again, until it has ended."""
    state = client.job(job)
    if state["status"] not in OPEN:
        st.rerun()
    _show_progress(state)
    if st.button("Cancel", icon=":material/cancel:"):
        client.cancel(job)
        st.rerun()


def _show_progress(state: Json) -> None:
    progress = state["progress"]
    done, total = progress["done"], progress["total"]
    st.markdown(f"{LOOKS[state['status']]} · sent {_ago(state['created'])} ago · model {state['model']['version']}")
    if total:
        left = state["eta_s"]
        eta = f" · about {timedelta(seconds=round(left))} left" if left else ""
        st.progress(done / total, f"{done:,} of {total:,} images · {progress['failed']:,} failed{eta}")
    elif state["status"] in OPEN:
        st.progress(0.0, "waiting to start" if state["status"] == "queued" else "listing the images")


def _show_downloads(client: Client, job: str) -> None:
    columns = st.columns(len(FILES) + 2)
    for column, (label, kind) in zip(columns, FILES.items(), strict=False):
        column.download_button(
            label,
            partial(client.results, job, kind),  # fetched on the click
            f"{job}.{kind}",
            icon=":material/download:",
            on_click="ignore",
            width="stretch",
        )


def _show_failed(client: Client, job: str, failed: int) -> None:
    rows = client.failed_files(job, SHOWN)
    table = [(row["path"], row["error"]["code"], row["error"]["detail"]) for row in rows]
    more = f", the first {SHOWN:,} here" if failed > SHOWN else ""
    st.markdown(f"**{failed:,} files could not be classified**{more}")
    st.dataframe(pd.DataFrame(table, columns=["file", "error", "reason"]), hide_index=True)


def _show_history(jobs: list[Json], chosen: str | None) -> None:
    st.subheader("History", anchor=False)
    if not jobs:
        st.info("No jobs yet: send a zip of images above.", icon=":material/inbox:")
        return
    for job in jobs[:HISTORY]:
        name, look, images, age = st.columns([4, 2, 3, 2], vertical_alignment="center")
        icon = ":material/arrow_right:" if job["id"] == chosen else None
        if name.button(job["source"], key=job["id"], type="tertiary", icon=icon):
            st.query_params["job"] = job["id"]
            st.rerun()
        look.markdown(LOOKS[job["status"]])
        progress = job["progress"]
        images.markdown(f"{progress['done']:,} images, {progress['failed']:,} failed")
        age.markdown(f"{_ago(job['created'])} ago")
    if len(jobs) > HISTORY:
        st.caption(f"and {len(jobs) - HISTORY} more")


def _ago(created: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
