"""Sign-in with OpenID Connect, where Streamlit's secrets have an ``[auth]`` section; otherwise the page is open."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from streamlit.errors import StreamlitAuthError, StreamlitSecretNotFoundError


def require_sign_in() -> None:
    """Return for signed-in users and where sign-in is not configured; otherwise show the sign-in button and stop."""
    if not _configured() or st.user.get("is_logged_in"):
        return
    st.title("Image classification")
    st.info("Sign in to classify photos.", icon=":material/lock:")
    if st.button("Sign in", icon=":material/login:", type="primary"):
        try:
            st.login()
        except StreamlitAuthError as error:
            st.error(f"**The `[auth]` section of the page's secrets is not valid.** {error}")
    st.stop()


def show_sign_out() -> None:
    """Show the sign-out button, where sign-in is configured."""
    if _configured() and st.sidebar.button(f"Sign out {st.user.get('email') or ''}", icon=":material/logout:"):
        st.logout()


def _configured() -> bool:
    """Return whether the secrets have an ``[auth]`` section; stop the page if the secrets cannot be parsed.

    A typing mistake in the file must not open the page to everyone.
    """
    try:
        return "auth" in st.secrets
    except StreamlitSecretNotFoundError as error:
        if any(Path(file).exists() for file in st.get_option("secrets.files")):
            st.error(f"**The page is closed because its secrets file cannot be read.** {error}")
            st.stop()
        return False
