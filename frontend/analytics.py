"""The Analytics page: what the prediction log says."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import altair as alt
import pandas as pd
import streamlit as st

from frontend.insights import LEVELS, QUANTILES, Insights, Level, Span

LOG_VARIABLE = "PREDICTION_LOG"
COLOURS: dict[Level, Literal["green", "blue", "orange", "red"]] = {
    "none": "green",
    "small": "blue",
    "moderate": "orange",
    "large": "red",
}


def show_analytics() -> None:
    """Show volume, times, classes, confidence, versions and drift of the days chosen."""
    st.title("Analytics")
    folder = os.environ.get(LOG_VARIABLE)
    days = Insights(Path(folder)).days() if folder else []
    if not folder or not days:
        _explain_empty(folder)
        return
    insights = Insights(Path(folder))
    span = _choose_span("Days", days, days[max(0, len(days) - 7)], days[-1])
    try:
        _show_volume(insights, span)
        _show_times(insights, span)
        _show_classes(insights, span)
        _show_versions(insights, span)
        _show_drift(insights, span, days)
    except LookupError as error:
        st.info(f"{error}: choose other days.", icon=":material/calendar_month:")


def _explain_empty(folder: str | None) -> None:
    if folder is None:
        st.info(
            "**There is no prediction log to look at.** "
            f"Set `prediction_log: {{folder: …}}` in the Ingress's `user_config` and "
            f"{LOG_VARIABLE} in this page's environment to the same folder.",
            icon=":material/bar_chart_off:",
        )
    else:
        st.info(
            f"**Nothing in {folder} yet.** Rows become visible with `python -m serve_app.analytics.etl {folder}`.",
            icon=":material/bar_chart_off:",
        )


def _choose_span(label: str, days: list[date], first: date, last: date, key: str | None = None) -> Span:
    chosen = st.date_input(label, (first, last), min_value=days[0], max_value=days[-1], key=key)
    if not isinstance(chosen, tuple) or len(chosen) != 2:
        st.stop()  # the second day is still to be clicked
    return Span(*chosen)


def _show_volume(insights: Insights, span: Span) -> None:
    volume, errors = insights.volume(span), insights.errors(span)
    total = int(errors["images"].sum())
    failed = total - int(errors.loc[errors["status"] == "ok", "images"].sum())
    phases = insights.phases(span)
    columns = st.columns(4)
    columns[0].metric("Images", f"{total:,}")
    columns[1].metric("Failed", f"{failed / total:.2%}")
    if whole := phases.get("total_ms"):
        columns[2].metric("p50", f"{whole[0]:.0f} ms")
        columns[3].metric("p99", f"{whole[-1]:.0f} ms")
    chart = (
        alt.Chart(volume)
        .mark_bar()
        .encode(
            x=alt.X("hour:T", title=None),
            y=alt.Y("images:Q", title="images an hour"),
            color=alt.Color("status:N", title=None),
        )
    )
    st.altair_chart(chart.properties(height=220))
    if failed:
        st.caption(
            "Errors · "
            + " · ".join(f"{s} {n:,}" for s, n in zip(errors["status"], errors["images"], strict=True) if s != "ok")
        )


def _show_times(insights: Insights, span: Span) -> None:
    left, right = st.columns(2)
    with left:
        st.subheader("Time per image, ms")
        rows = [(name.removesuffix("_ms"), *values) for name, values in insights.phases(span).items()]
        times = pd.DataFrame(rows, columns=["phase", *(f"p{q * 100:.0f}" for q in QUANTILES)]).round(1)
        st.dataframe(times, hide_index=True)
        _offer(times, "times")
    with right:
        st.subheader("Images in a batch")
        _bars(insights.histogram(span, "batch_size"), "images in the batch", 1)


def _show_classes(insights: Insights, span: Span) -> None:
    left, right = st.columns(2)
    with left:
        st.subheader("Classes")
        classes = insights.classes(span)
        chart = (
            alt.Chart(classes.head(20))
            .mark_bar()
            .encode(
                x=alt.X("images:Q"),
                y=alt.Y("label:N", sort="-x", title=None),
                tooltip=["label", "images", "mean_score"],
            )
        )
        st.altair_chart(chart)
        _offer(classes, "classes")
    with right:
        st.subheader("Confidence")
        _bars(insights.histogram(span, "score"), "score of the best class", 0.02)
        if span.first != span.last:
            mix = (
                alt.Chart(insights.class_mix(span))
                .mark_area()
                .encode(
                    x=alt.X("day:T", title=None), y=alt.Y("share:Q", stack=True), color=alt.Color("label:N", title=None)
                )
            )
            st.altair_chart(mix.properties(height=220))
    with st.expander("Least confident"):
        try:
            least = insights.least_confident(span)
        except LookupError:
            st.caption("The rows of these days are not kept any more; their counts are.")
        else:
            st.dataframe(least, hide_index=True)
            _offer(least, "least-confident")


def _show_versions(insights: Insights, span: Span) -> None:
    versions = insights.versions(span)
    if len(versions) < 2:
        return
    st.subheader("Versions")
    st.dataframe(versions.round(3), hide_index=True)
    _offer(versions, "versions")


def _show_drift(insights: Insights, span: Span, days: list[date]) -> None:
    st.subheader("Drift")
    if days[0] >= span.first:
        st.caption("There is no day before those chosen to compare them with.")
        return
    last = span.first - timedelta(days=1)
    baseline = _choose_span("Compared with", days, max(days[0], last - timedelta(days=6)), last, key="baseline")
    found = insights.drift(baseline, span)
    with st.container(horizontal=True):
        for each in found:
            st.badge(f"{each.what}: {each.level}", color=COLOURS[each.level])
    table = pd.DataFrame([asdict(each) for each in found]).round(4)
    st.dataframe(table, hide_index=True)
    _offer(table, "drift")
    st.caption(
        "PSI, the population stability index, adds up how far shares have moved: "
        + ", ".join(f"{name} from {least:g}" for least, name in reversed(LEVELS))
        + ". Two samples of one stream differ by about `chance`; less than five times that counts as none. "
        "JS is the Jensen–Shannon divergence, 0 for the same and 1 for nothing in common."
    )


def _bars(bins: pd.DataFrame, title: str, width: float) -> None:
    chart = (
        alt.Chart(bins.assign(high=bins["low"] + width))
        .mark_bar()
        .encode(
            x=alt.X("low:Q", bin="binned", title=title),
            x2="high:Q",
            y=alt.Y("images:Q", title=None),
            tooltip=["low", "images"],
        )
    )
    st.altair_chart(chart.properties(height=220))


def _offer(table: pd.DataFrame, name: str) -> None:
    st.download_button(
        "CSV", table.to_csv(index=False), f"{name}.csv", "text/csv", key=name, icon=":material/download:"
    )
