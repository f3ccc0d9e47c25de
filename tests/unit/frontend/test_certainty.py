"""How sure a result is, in words."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from frontend.components.certainty import SURE, UNKNOWN, UNSURE, certainty

SCRIPT = """
import streamlit as st
from frontend.components.certainty import show_certainty
show_certainty(st.session_state["result"])
"""


def make_result(best: float, second: float, abstain: bool) -> dict[str, object]:
    predictions = [{"label": "*cat*", "score": best}, {"label": "dog", "score": second}]
    return {"uncertainty": {"abstain": abstain}, "predictions": predictions}


@pytest.mark.parametrize(
    ("best", "second", "abstain", "kind", "words"),
    [
        (0.9, 0.05, False, SURE, r"**\*cat\*** · 90.0%"),
        (0.38, 0.3, True, UNSURE, r"**Not sure**: \*cat\* (38.0%) or dog (30.0%)?"),
        (0.2, 0.1, True, UNKNOWN, "**Probably none of the model's classes.**"),
    ],
)
def test_words(best: float, second: float, abstain: bool, kind: str, words: str) -> None:
    """A sure class, two candidates, or none of the classes; labels are text, not Markdown."""
    result = make_result(best, second, abstain)
    assert certainty(result) == kind
    page = AppTest.from_string(SCRIPT)
    page.session_state["result"] = result
    page.run()
    (shown,) = [*page.success, *page.warning]
    assert words in shown.value
