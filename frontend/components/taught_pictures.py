"""Pictures of taught photos: from this session's uploads, or from the API where the service keeps photos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import streamlit as st

from frontend.api_client import Json, Photo, ProblemError, ServerDownError
from frontend.components.markdown import escape_markdown
from frontend.components.pictures import THUMBNAIL_PX, Picture, make_picture, show_picture
from frontend.heads_client import HeadsClient

GALLERY_PX, GALLERY_PHOTOS = 72, 12  # side of a small picture, and how many of a class are shown at once
CACHE_BYTES = 50 * 2**20  # of all visitors
STYLE = f"""<style>
[class*="st-key-gallery"] img {{width: {GALLERY_PX}px; height: {GALLERY_PX}px; object-fit: cover; margin-right: 6px}}
</style>"""


def remember(before: Json | None, after: Json, sent: Mapping[str, Sequence[Photo]], limits: Json) -> None:
    """Keep small pictures of photos that were taught just now, by the ids that the API gave them.

    The API lists the examples of a class in the order in which they were sent. Where it has left out some, because the
    head had them already, it is not known which is which, and the session keeps no pictures of that class.
    """
    known = {example["id"] for example in (before or {}).get("examples", ())}
    pictures = _session_pictures()
    for name, photos in sent.items():
        new = [each["id"] for each in after["examples"] if each["class"] == name and each["id"] not in known]
        if len(new) == len(photos):
            pictures |= zip(new, (make_picture(photo, limits, THUMBNAIL_PX) for photo in photos), strict=True)


def picture_of(heads: HeadsClient, example: Json) -> Picture:
    """Return the picture of a taught photo, or the reason why there is none."""
    if picture := _session_pictures().get(example["id"]):
        return picture
    if example["photo"] is None:
        return Picture(None, "the service keeps no photos; only the session that sent a photo shows it")
    try:
        return Picture(_load(heads, example["photo"]))
    except (ProblemError, ServerDownError) as error:
        return Picture(None, str(error))


def show_gallery(pictures: Iterable[tuple[Picture, str]], key: str) -> None:
    """Show small square pictures, each with its text for screen readers, in as many rows as they need."""
    shown = [(picture.jpeg, alt) for picture, alt in pictures if picture.jpeg]
    if shown:
        images, texts = zip(*shown, strict=True)
        with st.container(key=f"gallery-{key}"):
            st.image(list(images), width=GALLERY_PX, alt=list(texts))


def show_similar(heads: HeadsClient, head: Json, similar: Sequence[Json], title: str, key: str) -> None:
    """Show the classes of similar taught photos, and their pictures; the owner alone gets their ids."""
    examples = {example["id"]: example for example in head["examples"]}
    st.markdown(f"{title}: {', '.join(escape_markdown(each['class']) for each in similar)}")
    known = [examples[each["id"]] for each in similar if each.get("id") in examples]
    show_gallery([(picture_of(heads, each), f"Taught photo of {each['class']}") for each in known], key)


def show_example(heads: HeadsClient, example: Json, caption: str, alt: str) -> None:
    """Show a taught photo, or what is known about it; ``caption`` is Markdown."""
    picture = picture_of(heads, example)
    if picture.jpeg is None:
        id, day = escape_markdown(example["id"][:8]), escape_markdown(example["added"][:10])
        caption = f"{caption} · photo {id}, taught on {day}"
    show_picture(picture, caption, alt=alt)


def _session_pictures() -> dict[str, Picture]:
    pictures: dict[str, Picture] = st.session_state.setdefault("taught-pictures", {})
    return pictures


@st.cache_data(max_size=CACHE_BYTES, show_spinner=False, hash_funcs={HeadsClient: lambda _: 0})
def _load(heads: HeadsClient, path: str) -> bytes:
    return heads.thumbnail(path)
