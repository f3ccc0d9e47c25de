"""Store feedback on answers as files that training reads: votes and, if the configuration allows it, images.

Many replicas may share the folder. Files are only ever added, and each is written atomically:

    votes/<time in ns>-<random>.json      one vote: a line of JSON with the fields of ``Vote``
    images/<class>/<sha256>.<format>      an image as it was sent, under the class that the vote names

The folder of a class has its name; characters that a file name must not have are percent-encoded (``class_folder``).
The last vote on an image counts, so one file may be in the folders of several classes. ``labeled_images`` returns the
class that counts.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from pydantic import Field, ValidationError

from serve_app.config import FeedbackConfig, FrozenModel
from serve_app.errors import DatasetError, OverloadedError
from serve_app.files import atomic_write

VOTES, IMAGES = "votes", "images"
COUNT_S = 600  # between two counts of a folder, which other replicas fill too


class Vote(FrozenModel):
    """One client's feedback on the answer to one image."""

    time: float = Field(description="Seconds since 1970.")
    request_id: str
    index: int = Field(description="Index of the image in that request.")
    correct: bool | None = Field(description="Whether the best class was right, if the client said so.")
    label: str | None = Field(description="The right class, if the client named it.")
    version: str | None = Field(description="Version of the weights that were served when the vote came.")
    caller: str | None = Field(description="Name of the API key, if keys are required.")
    image: str | None = Field(description="Path of the image below the folder, if it was kept.")


class FolderUse(NamedTuple):
    """What a feedback folder holds."""

    votes: int
    image_bytes: int


class LabeledImage(NamedTuple):
    """An image file and the class that feedback gave it."""

    path: Path
    label: str


class Feedback:
    """Writes votes, and images if they are to be kept, into the configured folder; then calls ``on_vote``.

    Raises:
        ValueError: The folder cannot be written to.
    """

    def __init__(self, config: FeedbackConfig, on_vote: Callable[[Vote], None] = lambda vote: None) -> None:
        self.keep_images, self._config = config.keep_images, config
        self._use, self._counted_s = FolderUse(0, 0), -math.inf
        self._folder, self._on_vote = Path(config.folder), on_vote
        try:
            for name in (VOTES, IMAGES):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"feedback.folder {config.folder}: cannot be written to ({error})") from None

    def keep(self, vote: Vote, image: tuple[bytes, str] | None = None) -> None:
        """Write a vote and, if it has a label, its image: the encoded file and its format, such as ``jpeg``.

        Raises:
            OverloadedError: The folder holds as many votes or bytes as it may (503).
        """
        size = len(image[0]) if image else 0
        self._check_room(size)
        if image and vote.label is not None:
            encoded, extension = image
            relative = Path(IMAGES, class_folder(vote.label), f"{sha256(encoded).hexdigest()}.{extension}")
            vote = vote.model_copy(update={"image": str(relative)})
            (self._folder / relative).parent.mkdir(exist_ok=True)
            with atomic_write(self._folder / relative) as path:
                path.write_bytes(encoded)
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        with atomic_write(self._folder / VOTES / name) as path:
            path.write_text(vote.model_dump_json() + "\n")
        self._use = FolderUse(self._use.votes + 1, self._use.image_bytes + size)
        self._on_vote(vote)

    def _check_room(self, image_bytes: int) -> None:
        """Raise OverloadedError if there is no room; every ``COUNT_S`` delete what is old, and count the rest."""
        config = self._config
        if (now := time.monotonic()) - self._counted_s > COUNT_S:
            self._counted_s = now
            if config.keep_days is not None:
                delete_older(self._folder, time.time() - config.keep_days * 86400)
            self._use = folder_use(self._folder)
        if self._use.votes >= config.max_votes:
            full = f"{self._use.votes} votes (limit: `feedback.max_votes` = {config.max_votes})"
        elif image_bytes and self._use.image_bytes + image_bytes > config.max_kept_bytes:
            full = (
                f"{self._use.image_bytes} bytes of images (limit: `feedback.max_kept_bytes` = {config.max_kept_bytes})"
            )
        else:
            return
        raise OverloadedError(
            f"the feedback folder holds {full}; the operator has to empty it or raise the limit", COUNT_S
        )


def folder_use(folder: Path) -> FolderUse:
    """Count the votes and the bytes of the images in a feedback folder."""
    image_bytes = 0
    for path in (folder / IMAGES).glob("*/[!.]*"):
        with suppress(FileNotFoundError):
            image_bytes += path.stat().st_size
    return FolderUse(sum(1 for _ in (folder / VOTES).glob("[!.]*.json")), image_bytes)


def delete_older(folder: Path, time_s: float) -> None:
    """Delete votes and images from before a time, in seconds since 1970.

    An image is written before the vote that names it, so images stay a little longer than votes.
    """
    for pattern, limit_s in ((f"{VOTES}/[!.]*.json", time_s), (f"{IMAGES}/*/[!.]*", time_s - COUNT_S)):
        for path in folder.glob(pattern):
            with suppress(FileNotFoundError):  # another replica deleted it
                if path.stat().st_mtime < limit_s:
                    path.unlink()


def class_folder(label: str) -> str:
    """Return a class's name as the name of a folder; different classes have different folders."""
    name = quote(label, safe=" ,'()+&=@!")
    return "%2E" + name[1:] if name.startswith(".") else name


def read_votes(folder: Path) -> Iterator[Vote]:
    """Yield the votes in a folder, oldest first.

    Raises:
        DatasetError: The folder is no feedback folder, or a file in it is not a vote; the message names it.
    """
    if not (folder / VOTES).is_dir():
        raise DatasetError(f"{folder} is not a feedback folder: it has no folder {VOTES}")
    for path in sorted((folder / VOTES).glob("[!.]*.json")):
        try:
            yield Vote.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DatasetError(f"{path} is not a vote: {error.errors()[0]['msg']}") from None


def labeled_images(folder: Path) -> list[LabeledImage]:
    """Return each kept image once, with the class that counts, sorted by file name.

    A vote replaces earlier votes on the same image of the same request. If a file came with several requests, the last
    vote with a class counts.

    Raises:
        DatasetError: See ``read_votes``; or an image that a vote names is missing.
    """
    votes_by_answer: dict[tuple[str, int], Vote] = {}
    for vote in read_votes(folder):
        votes_by_answer.pop((vote.request_id, vote.index), None)  # so that the later vote moves to the end
        votes_by_answer[vote.request_id, vote.index] = vote
    images: dict[str, LabeledImage] = {}
    for vote in votes_by_answer.values():
        if vote.image and vote.label is not None:
            path = folder / vote.image
            if not path.is_file():
                raise DatasetError(f"{path} is missing, but a vote on request {vote.request_id} names it")
            images[path.name] = LabeledImage(path, vote.label)
    return [images[name] for name in sorted(images)]
