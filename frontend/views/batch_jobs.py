"""The Batch jobs page: a zip or a prefix -> a job, its progress, its failed files and its results.

All visitors share the page's API key. With sign-in, a user sees the jobs that he or she started. Without it, a visitor
sees the jobs that this browser session started or opened by their link; an id has 128 random bits.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pandas as pd
import streamlit as st

from frontend.api_client import ApiClient, Json, ProblemError
from frontend.components.downloads import DOWNLOAD_ICON
from frontend.components.markdown import escape_markdown
from frontend.components.problems import show_problem
from frontend.components.sign_in import user_id

REFRESH_S = 1.0
MAX_FAILED_ROWS = 1000
MAX_HISTORY_ROWS = 25
OPEN = ("queued", "running")
BADGES = {
    "queued": ":gray-badge[:material/hourglass: queued]",
    "running": ":blue-badge[:material/play_arrow: running]",
    "succeeded": ":green-badge[:material/check: succeeded]",
    "failed": ":red-badge[:material/error: failed]",
    "cancelled": ":orange-badge[:material/cancel: cancelled]",
}
RESULT_FORMATS = {"CSV": "csv", "JSON": "json", "JSON lines": "jsonl", "Parquet": "parquet"}


def show_batch_jobs(client: ApiClient) -> None:
    """Show the form for a new job, the job that the URL names, and the history."""
    st.title("Batch jobs")
    user = user_id()
    if user is not None:
        client = client.for_user(user)
    try:
        with st.spinner("Reaching the service…"):
            listing = client.jobs()
    except ProblemError as error:
        if error.problem.get("code") != "jobs_off":
            raise
        st.info(f"**Batch jobs are switched off**: {escape_markdown(error)}.", icon=":material/toggle_off:")
        return
    _show_form(client, listing)
    if selected := st.query_params.get("job"):
        _show_job(client, selected)
    jobs = listing["jobs"] if user else [job for job in listing["jobs"] if job["id"] in _session_jobs()]
    _show_history(jobs, selected, user is not None)


def _session_jobs() -> set[str]:
    """Return the ids of the jobs that this browser session knows."""
    jobs: set[str] = st.session_state.setdefault("jobs", set())
    return jobs


def _show_form(client: ApiClient, listing: Json) -> None:
    from_zip, from_prefix = st.tabs(["Zip", "Folder or bucket"])
    with from_zip:
        api_mb = listing["limits"]["max_zip_bytes"] // 2**20
        # The page keeps an upload in memory, so Streamlit's own limit is the smaller one as a rule.
        max_mb = min(api_mb, st.get_option("server.maxUploadSize"))
        key = f"zip-{st.session_state.get('submitted-zips', 0)}"
        uploaded = st.file_uploader("A zip of images", "zip", max_upload_size=max_mb, key=key)
        st.caption(f"Send a larger zip, up to {api_mb} MB, directly to the API:")
        st.code(client.curl_job("photos.zip"), language=None, wrap_lines=True)
        if uploaded and st.button("Classify the zip", type="primary", icon=":material/play_arrow:"):
            _submit(lambda: client.submit_zip(uploaded.name, uploaded))
    with from_prefix:
        if not listing["sources"]:
            hint = "Allow some with `jobs: {sources: […]}` in the Ingress's `user_config`."
            st.info(f"Jobs may read no folder and no bucket. {hint}")
            return
        st.caption("Allowed sources: " + " · ".join(escape_markdown(source) for source in listing["sources"]))
        source = st.text_input("Folder or prefix", listing["sources"][0])
        if st.button("Classify its images", icon=":material/play_arrow:"):
            _submit(lambda: client.submit_prefix(source))


def _submit(send: Callable[[], Json]) -> None:
    """Send a new job and open it, or show why the API refused it."""
    try:
        with st.spinner("Starting the job…"):
            job = send()
    except ProblemError as error:
        show_problem(error.problem)
        return
    st.query_params["job"] = job["id"]
    _session_jobs().add(job["id"])
    # A file uploader with a new key starts empty.
    st.session_state["submitted-zips"] = st.session_state.get("submitted-zips", 0) + 1
    st.rerun()


def _show_job(client: ApiClient, job: str) -> None:
    try:
        state = client.job(job)
    except ProblemError as error:
        show_problem(error.problem, icon=":material/search_off:")
        return
    _session_jobs().add(job)
    st.subheader(escape_markdown(state["source"]), anchor=False)
    if state["status"] in OPEN:
        _follow(client, job)
        return
    _show_progress(state)
    if state["error"]:
        st.error(escape_markdown(state["error"]), icon=":material/error:")
    columns = st.columns(len(RESULT_FORMATS) + 2)
    for column, (label, suffix) in zip(columns, RESULT_FORMATS.items(), strict=False):
        load = partial(client.results, job, suffix)  # Streamlit calls it on a click
        column.download_button(label, load, f"{job}.{suffix}", icon=DOWNLOAD_ICON, on_click="ignore", width="stretch")
    if failed := state["progress"]["failed"]:
        _show_failed(client, job, failed)


@st.fragment(run_every=REFRESH_S)
def _follow(client: ApiClient, job: str) -> None:
    """Show an open job's progress every REFRESH_S seconds; rerun the page when the job ends."""
    state = client.job(job)
    if state["status"] not in OPEN:
        st.rerun()
    _show_progress(state)
    if st.button("Cancel", icon=":material/cancel:"):
        with st.spinner("Cancelling…"):
            client.cancel(job)
        st.rerun()


def _show_progress(state: Json) -> None:
    progress, version = state["progress"], escape_markdown(state["model"]["version"])
    done, total = progress["done"], progress["total"]
    st.markdown(f"{BADGES[state['status']]} · created {_age(state['created'])} · model {version}")
    if total:
        eta = f" · about {timedelta(seconds=round(state['eta_s']))} left" if state["eta_s"] else ""
        st.progress(done / total, f"{done:,} of {total:,} images · {progress['failed']:,} failed{eta}")
    elif state["status"] in OPEN:
        st.progress(0.0, "waiting to start" if state["status"] == "queued" else "listing the images")


def _show_failed(client: ApiClient, job: str, failed: int) -> None:
    rows = client.failed_files(job, MAX_FAILED_ROWS)
    table = [(row["path"], row["error"]["code"], row["error"]["detail"]) for row in rows]
    shown = f", the first {MAX_FAILED_ROWS:,} are listed" if failed > MAX_FAILED_ROWS else ""
    st.markdown(f"**{failed:,} files could not be classified**{shown}")
    st.dataframe(pd.DataFrame(table, columns=["file", "error", "reason"]), hide_index=True)


def _show_history(jobs: list[Json], selected: str | None, signed_in: bool) -> None:
    st.subheader("History", anchor=False)
    if not signed_in:
        st.caption("These are the jobs of this browser session. Keep a job's link to find it again later.")
    if not jobs:
        st.info("No jobs yet. Upload a zip of images above.", icon=":material/inbox:")
        return
    for job in jobs[:MAX_HISTORY_ROWS]:
        name, status, images, age = st.columns([4, 2, 3, 2], vertical_alignment="center")
        icon = ":material/arrow_right:" if job["id"] == selected else None
        if name.button(escape_markdown(job["source"]), key=job["id"], type="tertiary", icon=icon):
            st.query_params["job"] = job["id"]
            st.rerun()
        status.markdown(BADGES[job["status"]])
        progress = job["progress"]
        images.markdown(f"{progress['done']:,} images, {progress['failed']:,} failed")
        age.markdown(_age(job["created"]))
    if len(jobs) > MAX_HISTORY_ROWS:
        st.caption(f"and {len(jobs) - MAX_HISTORY_ROWS} more")


def _age(created: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"
