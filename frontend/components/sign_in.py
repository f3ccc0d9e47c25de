"""Sign-in with OpenID Connect, where Streamlit's secrets have an ``[auth]`` section; otherwise the page is open.

The secrets also say who may use the page: ``allowed_emails``, a list of addresses, ``@domains``, or ``*`` for everyone
whom the provider signs in. Without that list nobody may.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitAuthError, StreamlitSecretNotFoundError

from frontend.components.markdown import escape_markdown

ALLOWED = "allowed_emails"
EVERYONE = "*"
log = logging.getLogger("serve_app")


def require_sign_in() -> None:
    """Return for users who may use the page, and where sign-in is not configured; otherwise say why not and stop."""
    if not _configured():
        return
    allowed = _allowed_emails()
    if not st.user.get("is_logged_in"):
        _offer_sign_in()
    elif refusal := refuse(st.user.to_dict(), allowed):
        st.title("Image classification")
        st.error(f"**You may not use this page.** {escape_markdown(refusal)}", icon=":material/block:")
        if st.button("Sign out", icon=":material/logout:"):
            st.logout()
    else:
        return
    st.stop()


def refuse(claims: Mapping[str, Any], allowed: list[str]) -> str | None:
    """Return why a signed-in user may not use the page, or None.

    Args:
        claims: The user's ID token. An address counts only if the provider has verified it: at many providers users
            can enter any address.
        allowed: Addresses, ``@domain`` for all addresses of exactly that domain, or ``*``.
    """
    if EVERYONE in allowed:
        return None
    email = claims.get("email")
    if not isinstance(email, str) or "@" not in email:
        return "Your identity provider has not sent your email address."
    if claims.get("email_verified") not in (True, "true"):  # Amazon Cognito sends text
        return f"Your identity provider has not verified your address {email}."
    address = _lower(email)
    if address in allowed or f"@{address.rpartition('@')[2]}" in allowed:
        return None
    return f"Your address {email} is not on the list of allowed addresses; ask the operator of this page."


def user_id() -> str | None:
    """Return a name for the signed-in user that never changes and tells nothing about the user; None without sign-in.

    OpenID Connect identifies a user by issuer and subject; addresses can pass to another person (OIDC Core 5.7).
    """
    if not _configured() or not st.user.get("is_logged_in"):
        return None
    return sha256(f"{st.user.get('iss')}\0{st.user.get('sub')}".encode()).hexdigest()


def show_sign_out() -> None:
    """Show the sign-out button, where sign-in is configured."""
    if not _configured():
        return
    email = escape_markdown(st.user.get("email") or "")
    if st.sidebar.button(f"Sign out {email}", icon=":material/logout:"):
        st.logout()


def _offer_sign_in() -> None:
    st.title("Image classification")
    st.info("Sign in to classify photos.", icon=":material/lock:")
    if st.button("Sign in", icon=":material/login:", type="primary"):
        try:
            st.login()
        except StreamlitAuthError as error:
            log.error("sign-in is not possible: %s", error)
            st.error("**The `[auth]` section of the page's secrets is not valid.** The page's log says why.")


def _configured() -> bool:
    """Return whether the secrets have an ``[auth]`` section; stop the page if the secrets cannot be parsed.

    A typing mistake in the file must not open the page to everyone.
    """
    try:
        return "auth" in st.secrets
    except StreamlitSecretNotFoundError as error:
        if any(Path(file).exists() for file in st.get_option("secrets.files")):
            log.error("the page is closed: %s", error)
            st.error("**The page is closed because its secrets file cannot be read.** The page's log says why.")
            st.stop()
        return False


def _allowed_emails() -> list[str]:
    """Return the entries of ``allowed_emails`` in lower case; stop the page if there are none, or one is malformed."""
    entries = st.secrets.get(ALLOWED)
    entries = [entries] if isinstance(entries, str) else list(entries or ())
    wrong = [entry for entry in entries if not _is_entry(entry)]
    if entries and not wrong:
        return [_lower(entry.strip()) for entry in entries]
    log.error("the page is closed: %s in its secrets is missing or has malformed entries: %s", ALLOWED, wrong)
    st.error(
        f"**The page is closed: nobody is allowed to use it.** Set `{ALLOWED}` at the top of the page's secrets to "
        'addresses, `"@domain"` for all addresses of a domain, or `"*"` for everyone whom the identity provider '
        "signs in.",
        icon=":material/block:",
    )
    st.stop()


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, str):
        return False
    text = entry.strip()
    _, at, domain = text.rpartition("@")
    return text == EVERYONE or bool(at and domain and not set(text) & set(" ,;*/"))


def _lower(address: str) -> str:
    """Return an address with ASCII letters in lower case: other letters can turn into a different address."""
    return address.encode().lower().decode()
