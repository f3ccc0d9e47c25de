"""The Analytics page: traffic, times, classes, confidence, votes, versions and drift, from the prediction log."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import altair as alt
import duckdb
import pandas as pd
import streamlit as st

from frontend.api_client import ApiClient
from frontend.components.downloads import offer_csv
from frontend.components.log_notices import LOG_VARIABLE, feedback_folder, show_empty, show_no_folder, show_state
from frontend.components.markdown import escape_markdown
from frontend.feedback_votes import MAX_VOTES, count_votes, newest_vote_ns
from frontend.prediction_log_queries import LEVELS, NOISE_FACTOR, QUANTILES, DateRange, PredictionLogQueries
from frontend.prediction_log_reader import RawFiles, Signature, log_signature

CHART_HEIGHT_PX = 220
DEFAULT_DAYS = 7
COLORS = {"none": "green", "small": "blue", "moderate": "orange", "large": "red"}
REFRESH_S = 5.0  # with `flush_s`, also 5 s, an image appears within 15 s
DRAWING_SHARE = 0.25  # of the time between two refreshes that a slow page may draw
log = logging.getLogger("frontend")


class State(NamedTuple):
    """What changes when the page has something new to show."""

    log: Signature
    votes_ns: int


def show_analytics(client: ApiClient) -> None:
    """Show the charts of the selected days, or what will appear; new images appear by themselves."""
    st.title("Analytics")
    is_writing = show_state(client)
    name = os.environ.get(LOG_VARIABLE)
    if not name:
        show_no_folder()
        return
    state, started = _read_state(name), time.monotonic()
    try:
        queries = _open_log(name, state.log)
        if unread := _raw_files(name).unread:
            st.caption(
                f"The oldest {unread:,} raw files are not read: the ETL does not run. The service's log says why."
            )
        if days := queries.days():
            _show_days(queries, days)
        else:
            show_empty(is_writing)
    except duckdb.Error:
        log.exception("the prediction log cannot be read now")
        st.info("**The prediction log cannot be read now.** This page tries again by itself.", icon=":material/sync:")
    _rerun_on_change(name, state, time.monotonic() - started)


@st.cache_resource(show_spinner=False)
def _raw_files(folder: str) -> RawFiles:
    return RawFiles(Path(folder))


@st.cache_resource(show_spinner="Reading the prediction log", max_entries=2)
def _open_log(folder: str, signature: Signature) -> PredictionLogQueries:
    """Return the log as it is; all sessions share it until ``signature`` changes."""
    return PredictionLogQueries(Path(folder), _raw_files(folder))


def _read_state(folder: str) -> State:
    votes = feedback_folder()
    return State(log_signature(Path(folder)), newest_vote_ns(Path(votes)) if votes else 0)


def _rerun_on_change(folder: str, state: State, drawing_s: float) -> None:
    """Run the page again once the log or the votes have changed."""
    drawn, wait_s = time.monotonic(), max(REFRESH_S, drawing_s / DRAWING_SHARE)

    @st.fragment(run_every=wait_s)
    def check() -> None:
        # The first call is part of this run.
        if time.monotonic() - drawn > wait_s / 2 and _read_state(folder) != state:
            st.rerun()

    check()


def _show_days(queries: PredictionLogQueries, days: list[date]) -> None:
    selected = _select_days("Days", days, days[-DEFAULT_DAYS:][0], days[-1])
    try:
        _show_traffic(queries, selected)
        _show_times(queries, selected)
        _show_classes(queries, selected)
        _show_votes(selected)
        _show_versions(queries, selected)
        _show_drift(queries, selected, days)
    except LookupError as error:
        st.info(f"{escape_markdown(error)}. Select other days.", icon=":material/calendar_month:")


def _select_days(label: str, days: list[date], first: date, last: date, key: str | None = None) -> DateRange:
    selected = st.date_input(label, (first, last), min_value=days[0], max_value=days[-1], key=key)
    if not isinstance(selected, tuple) or len(selected) != 2:
        st.stop()  # after the first click, Streamlit returns the first day only
    return DateRange(*selected)


def _show_traffic(queries: PredictionLogQueries, selected: DateRange) -> None:
    volume, statuses = queries.volume(selected), queries.statuses(selected)
    total = int(statuses["images"].sum())
    errors = statuses[statuses["status"] != "ok"]
    columns = st.columns(4)
    columns[0].metric("Images", f"{total:,}")
    columns[1].metric("Failed", f"{errors['images'].sum() / total:.2%}")
    if total_ms := queries.phase_quantiles(selected).get("total_ms"):
        columns[2].metric("p50", f"{total_ms[0]:.0f} ms")
        columns[3].metric("p99", f"{total_ms[-1]:.0f} ms")
    st.bar_chart(
        volume, x="hour", y="images", color="status", x_label="", y_label="images per hour", height=CHART_HEIGHT_PX
    )
    if len(errors):
        st.caption(
            "Errors · " + " · ".join(f"{escape_markdown(status)} {n:,}" for status, n in errors.itertuples(index=False))
        )


def _show_times(queries: PredictionLogQueries, selected: DateRange) -> None:
    left, right = st.columns(2)
    with left:
        st.subheader("Time per image, ms")
        rows = [(name.removesuffix("_ms"), *values) for name, values in queries.phase_quantiles(selected).items()]
        times = pd.DataFrame(rows, columns=["phase", *(f"p{q * 100:.0f}" for q in QUANTILES)]).round(1)
        st.dataframe(times, hide_index=True)
        offer_csv(times, "times")
    with right:
        st.subheader("Batch size")
        _show_histogram(queries.histogram(selected, "batch_size"), "images in a batch")


def _show_classes(queries: PredictionLogQueries, selected: DateRange) -> None:
    classes = queries.classes(selected)
    if classes.empty:
        st.caption("No image of these days has a class: classes and confidence appear with the first one that has.")
        return
    left, right = st.columns(2)
    with left:
        st.subheader("Classes")
        st.bar_chart(classes.head(20), x="label", y="images", x_label="", horizontal=True, sort="-images")
        offer_csv(classes, "classes")
    with right:
        st.subheader("Confidence")
        _show_histogram(queries.histogram(selected, "score"), "score of the most likely class", is_score=True)
        if selected.first != selected.last:
            mix = queries.class_mix(selected)
            st.area_chart(mix, x="day", y="share", color="label", x_label="", stack=True, height=CHART_HEIGHT_PX)
    with st.expander("Least confident"):
        try:
            least = queries.least_confident(selected)
        except LookupError:
            st.caption("The log no longer keeps the rows of these days, only their counts.")
        else:
            st.dataframe(least, hide_index=True)
            offer_csv(least, "least-confident")


def _show_votes(selected: DateRange) -> None:
    st.subheader("Votes")
    if (folder := feedback_folder()) is None:
        st.caption("This page does not know the folder of the votes: feedback is switched off, or kept elsewhere.")
        return
    count = count_votes(Path(folder), *selected)
    if not count.votes:
        st.caption("No votes on these days. They appear here once somebody says under an answer whether it is right.")
        return
    columns = st.columns(4)
    columns[0].metric("Votes", f"{count.votes:,}")
    if judged := count.right + count.wrong:
        columns[1].metric("Right", f"{count.right / judged:.0%}")
    if count.votes == MAX_VOTES:
        st.caption(f"The newest {MAX_VOTES:,} votes of these days.")
    if len(count.by_version) > 1:
        st.dataframe(count.by_version.round(3), hide_index=True)


def _show_versions(queries: PredictionLogQueries, selected: DateRange) -> None:
    if len(versions := queries.versions(selected)) > 1:
        st.subheader("Versions")
        st.dataframe(versions.round(3), hide_index=True)
        offer_csv(versions, "versions")


def _show_drift(queries: PredictionLogQueries, selected: DateRange, days: list[date]) -> None:
    st.subheader("Drift")
    if days[0] >= selected.first:
        st.caption("The log has no day before the selected days to compare them with.")
        return
    last = selected.first - timedelta(days=1)
    first = max(days[0], last - timedelta(days=DEFAULT_DAYS - 1))
    baseline = _select_days("Baseline", days, first, last, key="baseline")
    if queries.classes(baseline).empty or queries.classes(selected).empty:
        st.caption("No image of the baseline or of the selected days has a class, so there is nothing to compare.")
        return
    drifts = queries.drift(baseline, selected)
    with st.container(horizontal=True):
        for drift in drifts:
            st.markdown(f":{COLORS[drift.level]}-badge[{drift.metric}: {drift.level}]", width="content")
    table = pd.DataFrame([asdict(drift) for drift in drifts]).round(4)
    st.dataframe(table, hide_index=True)
    offer_csv(table, "drift")
    st.caption(
        "PSI is the population stability index: "
        + ", ".join(f"{name} from {lowest:g}" for lowest, name in reversed(LEVELS))
        + f". A PSI below {NOISE_FACTOR} times `expected_psi` counts as none: `expected_psi` is the mean PSI of two "
        "samples of these sizes without drift. JS is the Jensen–Shannon divergence: 0 for equal distributions, 1 for "
        "distributions without a common value."
    )


def _show_histogram(bins: pd.DataFrame, title: str, is_score: bool = False) -> None:
    """Draw a histogram of counts, or of scores: their axis goes from 0 to 1, whatever the values are."""
    whole, scale = alt.Axis(tickMinStep=1), alt.Scale(domain=(0, 1)) if is_score else alt.Undefined
    x = alt.X("low:Q", bin="binned", title=title, scale=scale, axis=alt.Axis() if is_score else whole)
    bars = alt.Chart(bins, height=CHART_HEIGHT_PX).mark_bar()
    st.altair_chart(bars.encode(x, alt.Y("images:Q", title=None, axis=whole), x2="high:Q", tooltip=["low", "images"]))
