"""What a user has prepared and not taught yet: the classes of one head with their new photos, kept in the session."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

import streamlit as st

from frontend.api_client import Json, Photo, chunks
from frontend.components.pictures import THUMBNAIL_PX, make_picture
from serve_app.errors import InvalidParameterError
from serve_app.heads.names import clean_class_name, is_head_name

PHOTOS_PER_REQUEST = 64  # a step of the progress bar; a busy service takes 256 photos no longer within its deadline
FIRST_CLASSES = 2  # fields for names in an empty form
Photos = dict[str, list[Photo]]  # by class name


@dataclass
class DraftClass:
    """One class with the photos that are not taught yet.

    Attributes:
        number: Part of the keys of its widgets.
        name: As typed; once taught, as stored.
        is_taught: Whether the head has this class already.
        photos: What the next click on Teach sends.
        refused: Names of files that are no usable photos, with the reason.
        uploads: Number of uploads so far; an uploader with a new key starts empty.
    """

    number: int
    name: str = ""
    is_taught: bool = False
    photos: list[Photo] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    uploads: int = 0

    def add(self, photos: Iterable[Photo], limits: Mapping[str, Any]) -> None:
        """Take new photos; remember the names of those that the API would refuse, and leave out copies."""
        self.refused = []
        known = {photo.key for photo in self.photos}
        for photo in photos:
            if reason := make_picture(photo, limits, THUMBNAIL_PX).reason:
                self.refused.append((photo.name, reason))
            elif photo.key not in known:
                known.add(photo.key)
                self.photos.append(photo)


@dataclass
class Draft:
    """The classes of one head.

    Attributes:
        title: Name of a new head as typed.
        is_checked: Whether the page says what is missing, because Teach was clicked.
        is_wanted: Whether the click on Teach is not answered yet.
        problem: The API's error of the last click on Teach.
    """

    classes: list[DraftClass] = field(default_factory=list)
    title: str = ""
    is_checked: bool = False
    is_wanted: bool = False
    problem: Json | None = None

    def add_class(self, name: str = "", is_taught: bool = False) -> None:
        """Add a class without photos."""
        number = 1 + max((each.number for each in self.classes), default=0)
        self.classes.append(DraftClass(number, name, is_taught))

    def follow(self, labels: Sequence[str]) -> None:
        """Make the head's classes the taught ones, in its order; classes that are not taught yet come after them."""
        named = {clean(each.name): each for each in reversed(self.classes)}
        for label in labels:
            if label not in named:
                self.add_class(label, is_taught=True)
                named[label] = self.classes[-1]
        for each in self.classes:
            each.is_taught = clean(each.name) in labels
            each.name = clean(each.name) if each.is_taught else each.name
        taught = [named[label] for label in labels]
        self.classes = taught + [each for each in self.classes if not each.is_taught]

    def photos(self) -> Photos:
        """Return the new photos by the names of their classes."""
        return {clean(each.name): each.photos for each in self.classes if each.photos}

    def forget(self, taught: Photos) -> None:
        """Leave out photos that were taught just now."""
        for each in self.classes:
            done = {photo.key for photo in taught.get(clean(each.name), ())}
            each.photos = [photo for photo in each.photos if photo.key not in done]

    def class_problems(self, head: Json | None) -> dict[int, str]:
        """Return what is wrong with a class, by its number."""
        problems: dict[int, str] = {}
        seen: set[str] = set()
        for each in self.classes:
            name = clean(each.name)
            if not each.is_taught and not name and not each.photos and self._has_others(each):
                continue  # an empty card that nobody has touched
            if reason := name_problem(each.name):
                problems[each.number] = reason
            elif name in seen:
                problems[each.number] = "Another class has this name. Give it a name of its own."
            elif not each.photos and (is_replaced(head) or not each.is_taught):
                problems[each.number] = "This class has no photos yet. Add some: 10 to 20 are enough for a start."
            seen.add(name)
        return problems

    def title_problem(self, taken: Collection[str]) -> str | None:
        """Return why a new head cannot have this name, or None; ``taken`` are the names of the user's heads."""
        name = head_name(self.title)
        if not self.title.strip():
            return "Give it a name."
        if not is_head_name(name):
            return "Links and programs need a name of 1 to 63 Latin letters and digits. Choose another one."
        if name in taken:
            return f"`{name}` is taught already. Choose another name, or open it and add photos there."
        return None

    def _has_others(self, one: DraftClass) -> bool:
        return any(each is not one and (each.photos or each.name) for each in self.classes)


def get_draft(head: Json | None) -> Draft:
    """Return the session's draft for a head, or for a new one."""
    drafts: dict[str | None, Draft] = st.session_state.setdefault("teach-drafts", {})
    name = head["name"] if head else None
    if name not in drafts:
        drafts[name] = Draft()
        for _ in range(0 if head else FIRST_CLASSES):
            drafts[name].add_class()
    if head:
        drafts[name].follow(head["labels"])
    return drafts[name]


def drop_draft(name: str | None) -> None:
    """Forget the draft for a head, or for a new one."""
    st.session_state.setdefault("teach-drafts", {}).pop(name, None)


def is_replaced(head: Json | None) -> bool:
    """Return whether teaching starts without photos: the head is new, or its weights serve no more."""
    return head is None or head["status"] == "backbone_changed"


def clean(name: str) -> str:
    """Return the name of a class as the API stores it, or as it is where the API would refuse it."""
    try:
        return clean_class_name(name)
    except InvalidParameterError:
        return name.strip()


def name_problem(name: str) -> str | None:
    """Return why a class cannot have this name, or None."""
    if not name.strip():
        return "Give this class a name."
    if '"' in name:  # browsers and HTTP clients turn it into %22 in a form's field names (WHATWG HTML, 4.10.21.8)
        return "A class name cannot have a quotation mark here. Leave it out."
    try:
        clean_class_name(name)
    except InvalidParameterError as error:
        return str(error)
    return None


def head_name(title: str) -> str:
    """Return the name of a head for URLs and programs: ``Meine Täßchen!`` becomes ``meine-tasschen``."""
    plain = unicodedata.normalize("NFKD", title.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")


def requests_for(photos: Photos, limits: Mapping[str, int]) -> list[Photos]:
    """Split new photos into as few requests as the limits allow; each has photos of every class that has some left."""
    by_turns = zip_longest(*([(name, photo) for photo in group] for name, group in photos.items()))
    pairs = [pair for pair in chain.from_iterable(by_turns) if pair]
    requests: list[Photos] = []
    encoded = [photo for _, photo in pairs]
    count = min(limits["max_photos_per_request"], PHOTOS_PER_REQUEST)
    for indices in chunks(encoded, count, limits["max_body_bytes"]):
        request: Photos = {}
        for name, photo in (pairs[i] for i in indices):
            request.setdefault(name, []).append(photo)
        requests.append(request)
    return requests
