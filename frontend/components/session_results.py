"""Results of single photos, kept for the session: Streamlit runs a page again at each click."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import streamlit as st

from frontend.api_client import Json, Photo, failed, size_problem


def kept_result(photo: Photo, served: Json, key: Hashable, classify: Callable[[], Json]) -> Json:
    """Return a photo's result, from the session or from the API.

    A photo that is too large is not sent. Errors that a later try can cure are not kept.

    Args:
        photo: The photo.
        served: The response of ``GET /v1/models``.
        key: What else the result depends on.
        classify: Asks the API.
    """
    results: dict[Any, Json] = st.session_state.setdefault("results", {})
    if problem := size_problem(photo, served["limits"]):
        return failed(0, photo, problem)
    if (photo.key, key) not in results:
        with st.spinner("Classifying…"):
            result = classify()
        if result["status"] == "error" and result["error"].get("retryable"):
            return result
        results[photo.key, key] = result
    return results[photo.key, key]
