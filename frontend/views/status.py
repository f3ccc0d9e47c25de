"""The Status page: readiness, counters, model, limits."""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
import streamlit as st

from frontend.api_client import ApiClient
from frontend.components.markdown import escape_markdown

REFRESH_S = 2.0


def show_status(client: ApiClient) -> None:
    """Show whether the service is ready, its counters since the start, its model and its limits."""
    st.title("Status")
    with st.spinner("Reaching the service…"):
        served = client.models()
    _show_live(client)
    model, limits = served["models"][0], served["limits"]
    st.subheader("Model")
    name, version, notes, sha256 = (escape_markdown(model[key]) for key in ("name", "version", "notes", "sha256"))
    st.markdown(f"**{name}**, version **{version}**, {model['classes']} classes. {notes}")
    st.caption(f"sha256 {sha256}")
    if model["metrics"]:
        st.json(model["metrics"], expanded=1)
    st.subheader("Limits")
    st.markdown(
        f"{limits['max_image_bytes'] / 2**20:.0f} MB per image · {limits['max_images']} images and "
        f"{limits['max_body_bytes'] / 2**20:.0f} MB per request · {limits['max_pixels'] / 1e6:.0f} megapixels · "
        f"{limits['deadline_s']:.0f} s · formats: {escape_markdown(', '.join(served['formats']))}"
    )


@st.fragment(run_every=REFRESH_S)
def _show_live(client: ApiClient) -> None:
    not_ready, status = client.not_ready_reason(), client.status()
    if not_ready is None:
        st.success("Ready: every stage is up.", icon=":material/check_circle:")
    else:
        st.error(f"Not ready: {escape_markdown(not_ready)}", icon=":material/warning:")
    images = status["images"]
    total = images["ok"] + images["failed"]
    columns = st.columns(5)
    columns[0].metric("Uptime", str(timedelta(seconds=int(status["up_s"]))))
    columns[1].metric("Images", total)
    columns[2].metric("Failed", f"{images['failed'] / total:.1%}" if total else "–")
    columns[3].metric("In flight", images["in_flight"])
    columns[4].metric("Mean batch size", status["mean_batch_size"] or "–")
    left, right = st.columns(2)
    with left:
        st.markdown("**Replicas**")
        replicas = [
            (name, deployment["status"], ", ".join(f"{n} {s.lower()}" for s, n in deployment["replicas"].items()))
            for name, deployment in status["deployments"].items()
        ]
        st.dataframe(pd.DataFrame(replicas, columns=["deployment", "status", "replicas"]), hide_index=True)
    with right:
        st.markdown("**Time per image, ms** (last 1,000 images)")
        if status["timings_ms"]:
            st.dataframe(pd.DataFrame(status["timings_ms"]).T)
        else:
            st.caption("No image classified yet.")
    if status["errors"]:
        st.markdown(
            "**Errors** · " + " · ".join(f"{escape_markdown(code)} {n}" for code, n in status["errors"].items())
        )
