"""Text from outside as Markdown; tests/browser/test_hostile_names.py shows it to a real browser."""

from __future__ import annotations

import re

import pytest

from frontend.components.markdown import MAX_CHARS, WORD_JOINER, escape_markdown
from tests.support.hostile_text import HOSTILE_TEXTS


def shown(markdown: str) -> str:
    """Return what a Markdown text with escapes only shows."""
    return re.sub(r"\\(.)", r"\1", markdown).replace(WORD_JOINER, "")


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_every_punctuation_mark_is_escaped(text: str) -> None:
    """No character of Markdown's is left without a backslash, and the text stays on one line."""
    markdown = escape_markdown(text)
    assert not re.search(r"[!-/:-@\[-`{-~]", re.sub(r"\\.", "", markdown))
    assert "\n" not in markdown
    assert shown(markdown) == " ".join(text.split())


@pytest.mark.parametrize("text", ["http://evil.example", "WWW.evil.example", "bob@evil.example", ":streamlit:", "->"])
def test_what_streamlit_replaces_later_is_kept_apart(text: str) -> None:
    """Links without brackets, emoji and arrows are found in the text without its backslashes."""
    assert WORD_JOINER in escape_markdown(text)


def test_ordinary_names_have_nothing_invisible_in_them() -> None:
    assert escape_markdown("IMG_2026-11-29 (1).jpg") == r"IMG\_2026\-11\-29 \(1\)\.jpg"


def test_controls_and_long_texts() -> None:
    """Control characters are visible, directions of writing are not changed, and long texts are cut."""
    assert escape_markdown("a\0b\x1b[0m\x7f\udc80") == "a\ufffdb\ufffd\\[0m\ufffd\ufffd"
    assert escape_markdown("\u202egpj\u2066.exe") == r"gpj\.exe"
    assert escape_markdown("a \t\r\n\u2028\n b") == "a b"
    assert escape_markdown("x" * 70_000) == "x" * MAX_CHARS + "…"
    assert escape_markdown(None) == "None"
