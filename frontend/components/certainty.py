"""How sure a result is, in words."""

from __future__ import annotations

import streamlit as st

from frontend.api_client import Json
from frontend.components.markdown import escape_markdown

SURE, UNSURE, UNKNOWN = "Sure", "Not sure", "None of the classes"
MIN_TOP2 = 0.5  # smallest sum of the two best scores at which the photo counts as one of these two classes


def certainty(result: Json) -> str:
    """Return SURE, UNSURE or UNKNOWN for a result with predictions.

    The API abstains where the best score is below the model's threshold. If the two best classes then share less than
    half of the probability, the rest is spread over many classes, as it is for photos of something else.
    """
    if not result["uncertainty"]["abstain"]:
        return SURE
    top2 = sum(prediction["score"] for prediction in result["predictions"][:2])
    return UNSURE if top2 >= MIN_TOP2 else UNKNOWN


def show_certainty(result: Json) -> None:
    """Show the most likely class with its score, or in words that the model does not know."""
    best, second = result["predictions"][:2]
    label, score = escape_markdown(best["label"]), f"{best['score']:.1%}"
    kind = certainty(result)
    if kind == SURE:
        st.success(f"**{label}** · {score}", icon=":material/check_circle:")
    elif kind == UNSURE:
        other = escape_markdown(second["label"])
        text = f"**Not sure**: {label} ({score}) or {other} ({second['score']:.1%})?"
        st.warning(f"{text} Try a photo that shows it alone, closer or in better light.", icon=":material/help:")
    else:
        text = f"**Probably none of the model's classes.** The nearest is {label}, with only {score}."
        st.warning(f"{text} The side panel lists the classes.", icon=":material/help:")
