"""Who may use a page with sign-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from frontend.components.sign_in import refuse

AUTH = {
    "redirect_uri": "http://localhost:8501/oauth2callback",
    "cookie_secret": "not a secret",
    "client_id": "page",
    "client_secret": "not one either",
    "server_metadata_url": "https://id.example/.well-known/openid-configuration",
}
ALICE = {
    "is_logged_in": True,
    "iss": "https://id.example",
    "sub": "1",
    "email": "Alice@Photos.example",
    "email_verified": True,
}


@pytest.fixture
def signed_in(page: AppTest) -> AppTest:
    """The page of Alice, who has signed in."""
    page.secrets["auth"] = AUTH
    page.user = dict(ALICE)
    return page


def test_users_sign_in_before_they_see_anything(page: AppTest) -> None:
    """Where sign-in is configured, a user who has not signed in sees its button and no page."""
    page.secrets["auth"] = AUTH
    page.secrets["allowed_emails"] = ["*"]
    page.run()
    assert not page.exception
    assert [button.label for button in page.button] == ["Sign in"]
    assert not page.file_uploader


def test_allowed_users_see_the_page(signed_in: AppTest) -> None:
    signed_in.secrets["allowed_emails"] = ["bob@photos.example", "alice@photos.example"]
    signed_in.run()
    assert not signed_in.exception
    assert signed_in.file_uploader


def test_others_see_why_not_and_can_sign_out(signed_in: AppTest) -> None:
    """A user who is not on the list sees no page, but can sign in as somebody else."""
    signed_in.secrets["allowed_emails"] = ["bob@photos.example"]
    signed_in.run()
    assert not signed_in.exception
    assert not signed_in.file_uploader
    assert "not on the list" in signed_in.error[0].value
    assert [button.label for button in signed_in.button] == ["Sign out"]


@pytest.mark.parametrize(
    "allowed", [None, [], "", ["photos.example"], ["@"], ["*@photos.example"], ["a@x.example, b@x.example"], [1]]
)
@pytest.mark.parametrize("user", [{}, ALICE])
def test_without_a_valid_list_the_page_is_closed(user: dict[str, Any], allowed: object, page: AppTest) -> None:
    """Sign-in without `allowed_emails`, or with an entry that cannot match, lets nobody in and names the setting."""
    page.secrets["auth"] = AUTH
    page.user = dict(user)
    if allowed is not None:
        page.secrets["allowed_emails"] = allowed
    page.run()
    assert not page.exception
    assert not page.file_uploader
    assert not page.button
    assert "page is closed" in page.error[0].value
    assert "`allowed_emails`" in page.error[0].value


@pytest.mark.parametrize(
    ("email", "allowed", "is_allowed"),
    [
        ("alice@photos.example", "alice@photos.example", True),
        ("ALICE@Photos.Example", "alice@photos.example", True),
        ("alice@photos.example", "@photos.example", True),
        ("alice@photos.example", "*", True),
        ("alice@other.example", "@photos.example", False),
        ("alice@sub.photos.example", "@photos.example", False),
        ("alice@evilphotos.example", "@photos.example", False),
        ("alice@photos.example.evil.example", "@photos.example", False),
        ("alice@photos.example@evil.example", "@photos.example", False),
        ("@photos.example@evil.example", "@photos.example", False),
        ("alice@photos.example ", "alice@photos.example", False),
        ("\u212aate@photos.example", "kate@photos.example", False),  # the Kelvin sign's lower case is k
        ("malice@photos.example", "alice@photos.example", False),
        ("photos.example", "@photos.example", False),
        ("", "@photos.example", False),
    ],
)
def test_addresses_match_exactly(email: str, allowed: str, is_allowed: bool) -> None:
    """Letters count without their case; a domain is the whole part behind the last @."""
    claims = {**ALICE, "email": email}
    assert (refuse(claims, [allowed]) is None) is is_allowed


@pytest.mark.parametrize("verified", [False, None, "false", 0, "yes", "missing"])
def test_an_address_that_is_not_verified_does_not_count(verified: object) -> None:
    """At many providers users enter any address; only those that the provider has verified say who it is."""
    claims = {**ALICE, "email_verified": verified}
    if verified == "missing":
        del claims["email_verified"]
    reason = refuse(claims, ["alice@photos.example", "@photos.example"])
    assert reason is not None
    assert "not verified" in reason


def test_everyone_needs_no_address() -> None:
    """`*` leaves the choice to the provider, such as one that serves a single organization and sends no address."""
    assert refuse({"sub": "1"}, ["*"]) is None


def test_unreadable_secrets_close_the_page(page: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A syntax error in the secrets closes the page instead of opening it to everyone; it shows no path and no line."""
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text('API_KEY = "key_1"\n[auth\n')
    monkeypatch.chdir(tmp_path)
    page.run()
    assert "page is closed" in page.error[0].value
    assert not page.file_uploader
    assert str(tmp_path) not in page.error[0].value
    assert "key_1" not in page.error[0].value
