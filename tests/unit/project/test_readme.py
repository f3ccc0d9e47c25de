"""Links, make targets and placeholders in the README."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text()


def test_linked_files_exist() -> None:
    """Every relative link and image of the README and the documentation points to a file."""
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text()
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_make_targets_exist() -> None:
    """Every `make` command of the README has a target in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)\b", README):
        assert f"\n{target}:" in makefile, target


def test_nothing_is_left_to_fill_in() -> None:
    """The README has no HTML comments, which mark unfinished parts."""
    assert "<!--" not in README
