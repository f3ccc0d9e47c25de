"""What every page shares: the service that is down, API keys, errors of the page itself."""

from __future__ import annotations

import tomllib

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from serve_app.config import KeysConfig
from serve_app.http.auth import ApiKeys
from tests.support.local_service import LocalService
from tests.support.paths import ROOT


def test_a_service_that_is_down_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the API the page says so and names the command that starts it."""
    monkeypatch.setenv("API_URL", "http://127.0.0.1:9")
    st.cache_resource.clear()
    page = AppTest.from_file(str(ROOT / "frontend" / "app.py"), default_timeout=30).run()
    assert "not responding" in page.error[0].value
    assert "make run" in page.error[0].value


def test_a_rejected_key_is_explained(page: AppTest, service: LocalService) -> None:
    """A page without the key that the API requires names the variable to set."""
    service.keys = ApiKeys(KeysConfig(hashes={"someone": "0" * 64}))
    page.run()
    assert not page.exception
    assert "rejected this page's key" in page.error[0].value
    assert "API_KEY" in page.error[0].value


def test_streamlit_finds_no_pages_of_its_own() -> None:
    """No folder ``frontend/pages``: Streamlit would serve its files without the sign-in of the entry script."""
    assert not (ROOT / "frontend" / "pages").exists()


def test_an_error_of_the_page_shows_no_traceback() -> None:
    """Streamlit writes it to its log: a traceback names paths of the server and values."""
    assert (
        tomllib.loads((ROOT / "frontend" / ".streamlit" / "config.toml").read_text())["client"]["showErrorDetails"]
        == "none"
    )
