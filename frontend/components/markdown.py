"""Text from outside, shown as it is where Streamlit expects Markdown."""

from __future__ import annotations

import re
import string
import unicodedata

MAX_CHARS = 1000  # of one text; a file name in a zip may have 65 535
# Streamlit replaces these after it has parsed the Markdown, when a backslash in front is gone already: links without
# brackets (http://, www., mail addresses), :emoji:, :streamlit:, :material/icons:, arrows and dashes.
REPLACED_LATER = re.compile(r"(?<=[:@])(?=\S)|(?<=www)(?=\.)|(?<=[-<>=~])(?=[-<>=~])", re.IGNORECASE)
WORD_JOINER = "\u2060"  # invisible; keeps the characters around it from being read together
ESCAPED = str.maketrans({character: f"\\{character}" for character in string.punctuation})
BIDI_CONTROLS = dict.fromkeys(map(ord, "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"))


def escape_markdown(text: object) -> str:
    """Return Markdown that shows a text literally, on one line: no links, images, HTML, colors, emoji or formulas.

    White space becomes one space. Control characters become U+FFFD; marks that change the direction of writing are
    left out, because they can make ``exe.jpg`` look like another name. A text of more than MAX_CHARS is cut.
    """
    line = " ".join(str(text)[: MAX_CHARS + 1].translate(BIDI_CONTROLS).split())
    if len(line) > MAX_CHARS:
        line = f"{line[:MAX_CHARS]}…"
    line = "".join("\ufffd" if unicodedata.category(character) in ("Cc", "Cs") else character for character in line)
    parts = REPLACED_LATER.split(line)
    return WORD_JOINER.join(part.translate(ESCAPED) for part in parts)
