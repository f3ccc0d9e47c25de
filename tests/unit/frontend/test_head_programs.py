"""The programs that the Teach page offers; tests/service runs such programs against heads."""

from __future__ import annotations

import pytest

from frontend.head_programs import head_programs


@pytest.mark.parametrize("needs_key", [False, True])
@pytest.mark.parametrize("url", ["http://localhost:8000", "https://photos.example/api"])
def test_programs_name_the_head_and_the_service(url: str, needs_key: bool) -> None:
    """Each names head and address; the Python programs compile; all read the key from the environment, if needed."""
    programs = head_programs(url, "my-cups", needs_key)
    assert list(programs) == ["curl", "Python", "InferenceClient", "tritonclient"]
    for tool, text in programs.items():
        assert "my-cups" in text
        assert url.split("//")[1] in text
        assert ("API_KEY" in text) == needs_key
        if tool != "curl":
            compile(text, tool, "exec")
    assert ("ssl=True" in programs["tritonclient"]) == url.startswith("https")
