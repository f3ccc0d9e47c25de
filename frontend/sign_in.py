"""Who may see the pages: everyone, or whoever signs in where ``[auth]`` is among Streamlit's secrets."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from streamlit.errors import StreamlitAuthError, StreamlitSecretNotFoundError


def let_in() -> None:
    """Return for those who may see the pages; show the others how to sign in, and end the run."""
    if not _configured() or st.user.get("is_logged_in"):
        return
    st.title("Image classification")
    st.info("Sign in to classify photos.", icon=":material/lock:")
    if st.button("Sign in", icon=":material/login:", type="primary"):
        try:
            st.login()
        except StreamlitAuthError as error:
            st.error(f"**Signing in is not set up correctly.** {error}")
    st.stop()


def show_sign_out() -> None:
    """Offer to sign out, where one can."""
    if _configured() and st.sidebar.button(f"Sign out {st.user.get('email') or ''}", icon=":material/logout:"):
        st.logout()


def _configured() -> bool:
    """Whether signing in is wanted; a file of secrets that cannot be read opens nothing."""
    try:
        return "auth" in st.secrets
    except StreamlitSecretNotFoundError as error:
        if any(Path(file).exists() for file in st.get_option("secrets.files")):
            st.error(f"**The page stays closed: its secrets cannot be read.** {error}")
            st.stop()
        return False
