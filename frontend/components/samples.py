"""Sample photos that a visitor classifies with one click; samples/CREDITS.toml says whose they are."""

from __future__ import annotations

import base64
import io
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import streamlit as st
from PIL import Image

from frontend.api_client import Photo

FOLDER = Path(__file__).parents[1] / "samples"
BUTTON_PX = 152  # side of the square on a button, shown at half of that: screens may have two pixels per px
CHOSEN = "sample"  # key of the chosen photo in the session
STYLE = f"""<style>
.st-key-samples button {{padding: 0.2rem; min-height: 0; height: auto}}
.st-key-samples button img {{display: block; width: {BUTTON_PX // 2}px; max-height: none; border-radius: 0.3rem}}
</style>"""


class Sample(NamedTuple):
    """One photo with its credit."""

    photo: Photo
    alt: str  # what the photo shows, for screen readers
    author: str
    source: str  # URL
    icon: str  # data: URL of a square cut-out


@cache
def load_samples() -> tuple[Sample, ...]:
    """Read the sample photos and their credits."""
    credits = tomllib.loads((FOLDER / "CREDITS.toml").read_text())["photo"]
    return tuple(_read(**credit) for credit in credits)


def choose_sample() -> list[Photo]:
    """Show a button with a picture for each sample; return the photo that was clicked last, if any."""
    st.html(STYLE)
    st.markdown("**No photo at hand?** Click one:")
    with st.container(horizontal=True, key="samples", gap="small"):
        for sample in load_samples():
            name = sample.photo.name
            st.button(f"![{sample.alt}]({sample.icon})", key=name, on_click=_choose, args=(sample.photo,))
    with st.popover("Whose photos are these?", type="tertiary"):
        credits = [f"- [{sample.alt}]({sample.source}): {sample.author}" for sample in load_samples()]
        st.markdown("\n".join(["All are in the public domain.", "", *credits]))
    return [st.session_state[CHOSEN]] if CHOSEN in st.session_state else []


def forget_sample() -> None:
    """Choose no sample any more."""
    st.session_state.pop(CHOSEN, None)


def _choose(photo: Photo) -> None:
    st.session_state[CHOSEN] = photo


def _read(file: str, alt: str, author: str, source: str) -> Sample:
    data = (FOLDER / file).read_bytes()
    picture = Image.open(io.BytesIO(data))
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.resize((BUTTON_PX, BUTTON_PX), box=(left, top, left + side, top + side))
    icon = io.BytesIO()
    square.save(icon, "JPEG", quality=80)
    return Sample(
        Photo(file, data), alt, author, source, f"data:image/jpeg;base64,{base64.b64encode(icon.getvalue()).decode()}"
    )
