"""The commands that README.md shows."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text()
LINE = re.compile(r"^\$ (.+)$", re.M)
SPAN = re.compile(r"`((?:[A-Z_]+=\S+ )?(?:make|curl|pip|serve-app|\.venv/bin/serve-app) [^`]+)`")


def commands(program: str) -> list[str]:
    """Return the commands of a program, in the README's fenced blocks and sentences, without variables before it."""
    shown = [*LINE.findall(README), *SPAN.findall(README)]
    found = (re.fullmatch(rf"(?:[A-Z_]+=\S+ )?(?:\.venv/bin/)?({program} .*)", command) for command in shown)
    return sorted({match.group(1) for match in found if match})
