"""Stage 1/3 · who may come in now: an image is let in if it can be done in time, else refused with its bytes unread.

One ingress replica knows how many of its images are under way and how many a second come back
while there are more than the other stages can take. The first divided by the second is how long a
new image would wait. Nothing is refused on a guess: where little of a pace was measured only the hard caps hold, and a
moment in which nothing moves is not taken for the pace.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from serve_app.config import AdmissionConfig
from serve_app.deadline import Deadline
from serve_app.errors import OverloadedError
from serve_app.http.rate_limit import TokenBucket

MEMORY_S = 5.0  # a change of pace is known after about so long
ENOUGH = 16  # images that say what the pace is; fewer say less, and the fewer the less


class ThroughputEstimator:
    """Images a second that the other stages finish when they have all that they can take."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        self._s = self._done = 0.0  # all the time, and what came back in it
        self._busy_s = self._busy_done = 0.0  # of these, while the stages had all that they can take

    def passed(self, seconds: float, *, busy: bool) -> None:
        """Count time, in which the stages were kept busy or were not; what is long ago fades."""
        keep = math.exp(-seconds / MEMORY_S)
        self._s = self._s * keep + seconds
        self._done *= keep
        self._busy_s = self._busy_s * keep + (seconds if busy else 0.0)
        self._busy_done *= keep

    def finished(self, *, busy: bool) -> None:
        """Count an image that came back, while they were or were not."""
        self._done += 1
        self._busy_done += busy

    @property
    def image_s(self) -> float:
        """How long an image takes at least.

        Stages that are busy for a moment only, and stand still in it, look as very slow ones do. They are not slower
        than what came back in all the time.
        """
        return min(self._busy_s / max(self._busy_done, ENOUGH), self._s / max(self._done, 1.0))

    @property
    def images_per_s(self) -> float | None:
        """The pace, where enough was measured."""
        return self._busy_done / self._busy_s if self._busy_done >= ENOUGH else None

    def seconds_for(self, images: int) -> float:
        """How long so many images take at least."""
        return max(images, 0) * self.image_s


class Admission:
    """Counts what one ingress replica has under way, and refuses what would wait too long.

    Args:
        tuning: The knobs as they are now.
        room: How many images the other stages take at a time, as it is now; more than those wait.
        clock: Seconds.
    """

    def __init__(
        self,
        tuning: Callable[[], AdmissionConfig],
        room: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty."""
        self._tuning, self._room, self._clock = tuning, room, clock
        self._pace, self._since = ThroughputEstimator(), clock()
        self.images = self.buffered_bytes = 0

    def admit(self, body_bytes: int, deadline: Deadline, bucket: TokenBucket | None = None) -> Permit:
        """Let a request in whose body has not been read.

        Args:
            body_bytes: What its header declares.
            deadline: When its client stops waiting.
            bucket: What is left of its caller's rate.

        Raises:
            RateLimitedError: Its caller sends too much (429).
            OverloadedError: Not now (503); says when to come again.
            DeadlineExceededError: It came too late already (504).
        """
        if bucket:
            bucket.check()
        self.check(deadline)
        self.hold(body_bytes)
        return Permit(self, body_bytes, deadline, bucket)

    def check(self, deadline: Deadline) -> None:
        """Do nothing if one more image could be done in time.

        Raises:
            OverloadedError, DeadlineExceededError: As for ``admit``.
        """
        deadline.check()
        self._measure()
        tuning, waiting = self._tuning(), self.images - self._room()
        wait_s = self._pace.seconds_for(waiting)
        if self.images >= tuning.max_inflight_images:
            raise OverloadedError(f"{self.images} images are under way, which is the most here; try again", wait_s)
        if wait_s > tuning.max_queue_wait_s:
            raise OverloadedError(f"an image would wait {wait_s:.1f} s; try again", wait_s)
        if waiting > 0 and (done_s := self._pace.seconds_for(self.images)) > deadline.left_s():
            raise OverloadedError(f"an answer takes {done_s:.1f} s now, more than the deadline leaves", done_s)

    def hold(self, body_bytes: int) -> None:
        """Count bytes of bodies in memory.

        Raises:
            OverloadedError: With these there would be too many (503).
        """
        limit = self._tuning().max_buffered_bytes
        if (
            self.buffered_bytes + body_bytes > limit and self.buffered_bytes
        ):  # alone, a body is bounded by its own limit
            raise OverloadedError(
                f"the requests under way hold {self.buffered_bytes / 2**20:.0f} MB already; try again"
            )
        self.buffered_bytes += body_bytes

    def change(self, images: int, finished: bool = False) -> None:
        """Count images that came or went; finished is one that the stages have worked on."""
        self._measure()
        if finished:
            self._pace.finished(busy=self.images >= self._room())
        self.images += images

    def snapshot(self) -> dict[str, Any]:
        """For the status page."""
        per_s = self._pace.images_per_s
        return {
            "images": self.images,
            "buffered_bytes": self.buffered_bytes,
            "images_per_s": per_s and round(per_s, 1),
        }

    def _measure(self) -> None:
        now = self._clock()
        self._pace.passed(now - self._since, busy=self.images >= self._room())
        self._since = now


class Permit:
    """A request that was let in; leaving the block lets go of whatever it still has."""

    def __init__(self, admission: Admission, body_bytes: int, deadline: Deadline, bucket: TokenBucket | None) -> None:
        """Counted are its bytes so far; how many images there are shows when they are read."""
        self._admission, self._bytes, self.deadline, self._bucket = admission, body_bytes, deadline, bucket
        self._declared = body_bytes
        self._images = 0

    def received(self, body_bytes: int) -> None:
        """Count bytes that came; those that were declared are counted already.

        Raises:
            OverloadedError: Too many bytes in memory (503).
        """
        if not self._declared:
            self._admission.hold(body_bytes)
            self._bytes += body_bytes

    def take(self, images: int) -> None:
        """Count the images, now that they are known.

        Raises:
            OverloadedError, DeadlineExceededError: Others came first, or time has run out meanwhile.
        """
        self._admission.check(self.deadline)
        self._images += images
        self._admission.change(images)
        if self._bucket:
            self._bucket.take(images)

    def finished(self, worked: bool) -> None:
        """Count an image as gone.

        Args:
            worked: The stages have worked on it; else it says nothing about their pace.
        """
        if self._images:
            self._images -= 1
            self._admission.change(-1, worked)

    def __enter__(self) -> Self:
        """Hold."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let go."""
        self._admission.change(-self._images)
        self._admission.buffered_bytes -= self._bytes
        self._images = self._bytes = 0
