"""Names of heads are safe in URLs and folders; class names are what a person typed, once."""

from __future__ import annotations

import pytest

from serve_app.errors import InvalidParameterError
from serve_app.heads.names import check_head_name, clean_class_name


@pytest.mark.parametrize("name", ["a", "7", "cups-2_b", "a" * 63])
def test_head_names(name: str) -> None:
    assert check_head_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", "_a", "a b", "a.b", "ä", "a" * 64, "../a", "a\n", "a/b"])
def test_refused_head_names(name: str) -> None:
    """The sentence names the alphabet and the length."""
    with pytest.raises(InvalidParameterError, match="1 to 63 characters of a-z"):
        check_head_name(name)


def test_class_names_that_look_the_same_are_the_same() -> None:
    """Spaces around it do not count, nor how an accent is encoded."""
    assert clean_class_name("  Kännchen ") == clean_class_name("Ka\u0308nnchen") == "Kännchen"
    assert clean_class_name("日本 茶 🍵") == "日本 茶 🍵"
    assert len(clean_class_name("x" * 80)) == 80


@pytest.mark.parametrize("name", ["", "   ", "x" * 81, "a\nb", "a\0", "a\u200fb", "\ud800"])
def test_refused_class_names(name: str) -> None:
    with pytest.raises(InvalidParameterError, match="class"):
        clean_class_name(name)
