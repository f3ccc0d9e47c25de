"""Store feedback on answers as files that training reads: votes and, if the configuration allows it, images.

Many replicas may share the folder. Files are only ever added, and each is written atomically (serve_app/files.py):

    votes/<time in ns>-<random>.json      one vote: a line of JSON with the fields of ``Vote``
    images/<class>/<sha256>.<format>      an image as it was sent, under the class that the vote names

The folder of a class has its name; characters that a file name must not have are percent-encoded (``class_folder``).
The last vote on an image counts, so one file may be in the folders of several classes. ``labeled_images`` returns the
class that counts.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import file_digest, sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from pydantic import Field

from serve_app.config import FeedbackConfig
from serve_app.errors import DatasetError, NotReadyError, OverloadedError
from serve_app.files import CorruptFileError, atomic_write, create_folder, read_stored
from serve_app.paths import data_path
from serve_app.settings import FrozenModel

VOTES, IMAGES = "votes", "images"
COUNT_S = 600  # between two counts of a folder, which other replicas fill too
log = logging.getLogger("serve_app")


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

    A folder that cannot be created is logged and created later: feedback never stops the service.
    """

    def __init__(self, config: FeedbackConfig, on_vote: Callable[[Vote], None] = lambda vote: None) -> None:
        self.keep_images, self._config = config.keep_images, config
        self._use, self._counted_s = FolderUse(0, 0), -math.inf
        self._folder, self._on_vote = Path(data_path(config.folder)), on_vote
        self._has_folders = False
        try:
            self._create_folders()
        except OSError as error:
            log.error("feedback.folder %s: cannot be written to, votes get 503: %s", config.folder, error)

    def keep(self, vote: Vote, image: tuple[bytes, str] | None = None) -> None:
        """Write a vote and, if it has a label, its image: the encoded file and its format, such as ``jpeg``.

        Both survive a power cut once this returns.

        Raises:
            OverloadedError: The folder holds as many votes or bytes as it may (503).
            NotReadyError: The folder cannot be written to, or the disk is full (503).
        """
        try:
            self._check_room(len(image[0]) if image else 0)
            written = self._write(vote, image)
        except OSError as error:
            log.error("feedback cannot be written: %s", error)
            reason = error.strerror or type(error).__name__
            raise NotReadyError(f"the feedback cannot be written now: {reason}; retry later") from error
        self._on_vote(written)

    def _write(self, vote: Vote, image: tuple[bytes, str] | None) -> Vote:
        self._create_folders()
        if image and vote.label is not None:
            encoded, extension = image
            relative = Path(IMAGES, class_folder(vote.label), f"{sha256(encoded).hexdigest()}.{extension}")
            vote = vote.model_copy(update={"image": str(relative)})
            create_folder((self._folder / relative).parent)
            with atomic_write(self._folder / relative) as path:
                path.write_bytes(encoded)
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        with atomic_write(self._folder / VOTES / name) as path:
            path.write_text(vote.model_dump_json() + "\n")
        self._use = FolderUse(self._use.votes + 1, self._use.image_bytes + (len(image[0]) if image else 0))
        return vote

    def _create_folders(self) -> None:
        """Create the folders once: one that vanishes later was on a disk that is gone, and is not made again."""
        if not self._has_folders:
            for name in (VOTES, IMAGES):
                create_folder(self._folder / name)
            self._has_folders = True

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
    """Yield the votes in a folder, oldest first; a file that a power cut has emptied is logged and left out.

    Raises:
        DatasetError: The folder is no feedback folder, or a file in it is not a vote; the message names it.
    """
    if not (folder / VOTES).is_dir():
        raise DatasetError(f"{folder} is not a feedback folder: it has no folder {VOTES}")
    for path in sorted((folder / VOTES).glob("[!.]*.json")):
        try:
            yield read_stored(Vote, path)
        except FileNotFoundError:  # deleted a moment ago
            continue
        except CorruptFileError as error:
            if path.read_bytes().strip(b"\0"):
                raise DatasetError(f"{path} is not a vote: {error}") from None
            log.warning("%s is empty and is left out: the machine lost power while it was written", path)


def labeled_images(folder: Path) -> list[LabeledImage]:
    """Return each kept image once, with the class that counts, sorted by file name.

    A vote replaces earlier votes on the same image of the same request. If a file came with several requests, the last
    vote with a class counts. An image that is missing, or is not the file that was sent, is logged and left out.

    Raises:
        DatasetError: See ``read_votes``.
    """
    votes_by_answer: dict[tuple[str, int], Vote] = {}
    for vote in read_votes(folder):
        votes_by_answer.pop((vote.request_id, vote.index), None)  # so that the later vote moves to the end
        votes_by_answer[vote.request_id, vote.index] = vote
    images: dict[str, LabeledImage] = {}
    for vote in votes_by_answer.values():
        if vote.image and vote.label is not None:
            path = folder / vote.image
            if _is_whole(path):
                images[path.name] = LabeledImage(path, vote.label)
            else:
                log.warning("%s is missing or damaged, so the vote on request %s is left out", path, vote.request_id)
    return [images[name] for name in sorted(images)]


def _is_whole(path: Path) -> bool:
    """Return whether an image is the file that was sent, whose name is its hash."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest() == path.stem
    except OSError:
        return False
