"""What people say about answers, as files that training reads: votes and, with consent by config, the images.

A folder, which may be shared by many replicas and is only ever added to:

    votes/<time in ns>-<random>.json      one vote: a line of JSON with the fields of ``Vote``
    images/<class>/<sha256>.<format>      an image as it was sent, under the class that somebody gave it

Every file is there whole or not at all. A class is a folder's name with what may not stand in one percent-encoded
(``folder_of``). The last vote on an image counts, so its file may stand under more than one class:
``labeled`` says which class holds.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from pydantic import Field, ValidationError

from serve_app.config import FeedbackConfig, FrozenModel
from serve_app.files import atomic_write

VOTES, IMAGES = "votes", "images"


class Vote(FrozenModel):
    """One person's word on one answer."""

    time: float = Field(description="Seconds since 1970.")
    request_id: str
    index: int = Field(description="Of the image in that request.")
    correct: bool | None = Field(description="Whether the best class was right, if that was said.")
    label: str | None = Field(description="The right class, if it was named.")
    version: str | None = Field(description="Weights that were served when the vote came.")
    caller: str | None = Field(description="Name of the API key, where keys are needed.")
    image: str | None = Field(description="Path of the image below the folder, if it was kept.")


class Labeled(NamedTuple):
    """An image that somebody gave a class."""

    path: Path
    label: str


class Feedback:
    """Where votes go while one set of values holds."""

    def __init__(self, tuning: FeedbackConfig, tell: Callable[[Vote], None] = lambda vote: None) -> None:
        """Make the folders.

        Args:
            tuning: Where, and whether images are kept.
            tell: Called with each vote that was written.

        Raises:
            ValueError: The folder cannot be written to.
        """
        self.keep_images = tuning.keep_images
        self._folder, self._tell = Path(tuning.folder), tell
        try:
            for name in (VOTES, IMAGES):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"feedback.folder {tuning.folder}: cannot be written to ({error})") from None

    def keep(self, vote: Vote, image: tuple[bytes, str] | None = None) -> None:
        """Write a vote, and the image that it is about.

        Args:
            vote: Without its ``image``.
            image: The encoded file and its format, such as ``jpeg``; only with a label.

        Raises:
            OSError: It cannot be written.
        """
        if image and vote.label is not None:
            encoded, kind = image
            kept = Path(IMAGES, folder_of(vote.label), f"{sha256(encoded).hexdigest()}.{kind}")
            vote = vote.model_copy(update={"image": str(kept)})
            (self._folder / kept).parent.mkdir(exist_ok=True)
            with atomic_write(self._folder / kept) as path:
                path.write_bytes(encoded)
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        with atomic_write(self._folder / VOTES / name) as path:
            path.write_text(vote.model_dump_json() + "\n")
        self._tell(vote)


def folder_of(label: str) -> str:
    """A class as the name of a folder."""
    name = quote(label, safe=" ,'()+&=@!")
    return "%2E" + name[1:] if name.startswith(".") else name


def votes(folder: Path) -> Iterator[Vote]:
    """The votes in a folder, oldest first.

    Raises:
        ValueError: The folder holds no feedback, or a file in it is no vote; the message names it.
    """
    if not (folder / VOTES).is_dir():
        raise ValueError(f"{folder} holds no feedback: there is no folder {VOTES} in it")
    for path in sorted((folder / VOTES).glob("[!.]*.json")):
        try:
            yield Vote.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} is no vote: {error.errors()[0]['msg']}") from None


def labeled(folder: Path) -> list[Labeled]:
    """The images to train on, each once with the class that the last vote on it gave it.

    A vote takes the place of earlier ones on the same image of the same request; of the same file in several
    requests the last one with a class counts.

    Returns:
        In the order of the files' names.

    Raises:
        ValueError: See ``votes``; or a vote names an image that is not there.
    """
    by_answer: dict[tuple[str, int], Vote] = {}
    for vote in votes(folder):
        by_answer.pop((vote.request_id, vote.index), None)  # a later vote also comes later
        by_answer[vote.request_id, vote.index] = vote
    found: dict[str, Labeled] = {}
    for vote in by_answer.values():
        if vote.image and vote.label is not None:
            path = folder / vote.image
            if not path.is_file():
                raise ValueError(f"{path} is not there, but a vote on request {vote.request_id} names it")
            found[path.name] = Labeled(path, vote.label)
    return [found[name] for name in sorted(found)]
