"""The Analytics page: traffic, times, classes, confidence, versions and drift, from the prediction log."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path

import altair as alt
import pandas as pd
import streamlit as st

from frontend.components.downloads import offer_csv
from frontend.components.markdown import escape_markdown
from frontend.prediction_log_queries import LEVELS, NOISE_FACTOR, QUANTILES, DateRange, PredictionLogQueries

LOG_VARIABLE = "PREDICTION_LOG"
CHART_HEIGHT_PX = 220
DEFAULT_DAYS = 7
EMPTY_ICON = ":material/bar_chart_off:"
COLORS = {"none": "green", "small": "blue", "moderate": "orange", "large": "red"}


def show_analytics() -> None:
    """Show the charts of the selected days, or how to get a prediction log."""
    st.title("Analytics")
    folder = os.environ.get(LOG_VARIABLE)
    if not folder:
        st.info(
            "**This page has no prediction log.** Set `prediction_log: {folder: …}` in the Ingress's `user_config`, "
            f"and set {LOG_VARIABLE} to the same folder in this page's environment.",
            icon=EMPTY_ICON,
        )
        return
    queries = PredictionLogQueries(Path(folder))
    if not (days := queries.days()):
        st.info(
            f"**The prediction log has no summaries yet.** Run `serve-app etl` on the folder in {LOG_VARIABLE}.",
            icon=EMPTY_ICON,
        )
        return
    selected = _select_days("Days", days, days[-DEFAULT_DAYS:][0], days[-1])
    try:
        _show_traffic(queries, selected)
        _show_times(queries, selected)
        _show_classes(queries, selected)
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
    left, right = st.columns(2)
    with left:
        st.subheader("Classes")
        classes = queries.classes(selected)
        st.bar_chart(classes.head(20), x="label", y="images", x_label="", horizontal=True, sort="-images")
        offer_csv(classes, "classes")
    with right:
        st.subheader("Confidence")
        _show_histogram(queries.histogram(selected, "score"), "score of the most likely class")
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


def _show_histogram(bins: pd.DataFrame, title: str) -> None:
    x, y = alt.X("low:Q", bin="binned", title=title), alt.Y("images:Q", title=None)
    bars = alt.Chart(bins, height=CHART_HEIGHT_PX).mark_bar()
    st.altair_chart(bars.encode(x, y, x2="high:Q", tooltip=["low", "images"]))
