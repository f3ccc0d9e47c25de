"""What every page shares: the service that is down, API keys, sign-in."""

from __future__ import annotations

from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from serve_app.config import KeysConfig
from serve_app.http.auth import ApiKeys
from tests.support.local_service import LocalService
from tests.support.paths import ROOT

AUTH = {
    "redirect_uri": "http://localhost:8501/oauth2callback",
    "cookie_secret": "not a secret",
    "client_id": "page",
    "client_secret": "not one either",
    "server_metadata_url": "https://id.example/.well-known/openid-configuration",
}


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


def test_users_sign_in_before_they_see_anything(page: AppTest) -> None:
    """Where sign-in is configured, a user who has not signed in sees its button and no page."""
    page.secrets["auth"] = AUTH
    page.run()
    assert not page.exception
    assert [button.label for button in page.button] == ["Sign in"]
    assert not page.file_uploader


def test_unreadable_secrets_close_the_page(page: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A syntax error in the secrets closes the page instead of opening it to everyone."""
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text("[auth\n")
    monkeypatch.chdir(tmp_path)
    page.run()
    assert "page is closed" in page.error[0].value
    assert not page.file_uploader


def test_streamlit_finds_no_pages_of_its_own() -> None:
    """No folder ``frontend/pages``: Streamlit would serve its files without the sign-in of the entry script."""
    assert not (ROOT / "frontend" / "pages").exists()
