"""The camera: one click takes several pictures, one after the other."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import streamlit as st

from frontend.api_client import Photo

BURST, PAUSE_MS = 5, 400  # pictures of one click, and the time between two: enough to turn a cup a little
HTML = """<video playsinline muted aria-label="What the camera sees"></video>
<p role="status"></p>
<div class="buttons"><button class="shoot" disabled></button><button class="turn" hidden>Other camera</button></div>"""
FOLDER = Path(__file__).parent
show_camera = st.components.v2.component(
    "burst_camera",
    html=HTML,
    css=(FOLDER / "burst_camera.css").read_text(),
    js=(FOLDER / "burst_camera.js").read_text(),
)


def take_photos(subject: str, key: str, take: Callable[[list[Photo]], None], count: int = BURST) -> None:
    """Show a switch for the camera; call ``take`` with the pictures of each click.

    The browser asks for permission as soon as the camera is there, so it starts only after the switch.

    Args:
        subject: What is to be photographed, in Markdown.
        key: Prefix of the widgets' keys.
        take: A callback of Streamlit: it runs before the script runs again.
        count: Pictures of one click.
    """

    def receive() -> None:
        take(_read(st.session_state[f"{key}-camera"].get("burst")))

    if st.toggle(f"Use the camera for {subject}", key=f"{key}-camera-on"):
        show_camera(key=f"{key}-camera", data={"count": count, "pause_ms": PAUSE_MS}, on_burst_change=receive)


def _read(burst: Any) -> list[Photo]:
    """Return the pictures that a browser sent; a browser may send anything."""
    if not isinstance(burst, dict) or not isinstance(burst.get("pictures"), list):
        return []
    now = datetime.now(UTC).strftime("%H%M%S")
    photos = []
    for number, text in enumerate(burst["pictures"], 1):
        try:
            photos.append(Photo(f"camera-{now}-{number}.jpg", base64.b64decode(text, validate=True)))
        except (binascii.Error, TypeError, ValueError):
            continue
    return photos
