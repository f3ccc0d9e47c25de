"""Admission control: lets a request in if its images can be classified in time, else refuses it with its body unread.

One ingress replica knows how many of its images are in flight. It measures how many images per second come back while
the other stages are busy. The first number divided by the second is the expected wait of a new image. A request is
refused if that is longer than its deadline allows, or if memory and places are used up. While too few completions have
been measured, only these hard limits apply. Callers take turns in the queue (``FairQueue``), so a caller with few
images waits for few of another caller's.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from serve_app.config import IngressConfig
from serve_app.deadline import Deadline
from serve_app.errors import OverloadedError, TooLargeError
from serve_app.http.accounts import Charge

DECAY_S = 5.0  # time constant: a change of throughput is known after about this long
MIN_COMPLETIONS = 16  # completions needed before the estimate is trusted in full
# A caller may take this many times what it leaves free, so something is always left for others; Choudhury and Hahne
# 1998, "Dynamic queue length thresholds for shared-memory packet switches".
FREE_MULTIPLE = 3


class ThroughputEstimator:
    """Estimates how many images, or requests, per second the other stages finish while they are busy."""

    def __init__(self) -> None:
        self._total_s = self._total_done = 0.0
        self._busy_s = self._busy_done = 0.0  # the part of these while the stages had all that they can take

    def advance(self, seconds: float, *, busy: bool) -> None:
        """Add time during which the stages were busy or not; older measurements decay."""
        keep = math.exp(-seconds / DECAY_S)
        self._total_s = self._total_s * keep + seconds
        self._total_done *= keep
        self._busy_s = self._busy_s * keep + (seconds if busy else 0.0)
        self._busy_done *= keep

    def complete(self, *, busy: bool) -> None:
        """Add a completed image or request."""
        self._total_done += 1
        self._busy_done += busy

    @property
    def item_s(self) -> float:
        """Lower estimate of the seconds per image or request.

        A short stall looks like a slow model, so the estimate is capped by the overall throughput.
        """
        return min(self._busy_s / max(self._busy_done, MIN_COMPLETIONS), self._total_s / max(self._total_done, 1.0))

    @property
    def per_s(self) -> float | None:
        """Throughput while busy; None before ``MIN_COMPLETIONS``."""
        return self._busy_done / self._busy_s if self._busy_done >= MIN_COMPLETIONS else None


class AdmissionController:
    """Counts the images and bytes of one ingress replica and refuses requests that would wait too long."""

    def __init__(self, config: Callable[[], IngressConfig], clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._images_done, self._requests_done = ThroughputEstimator(), ThroughputEstimator()
        self._measured_at = clock()
        self.images = self.buffered_bytes = 0
        self.fetching = 0  # of the images, those that are being fetched by URL and that no other stage works on yet
        self._in_stages: Counter[str | None] = Counter()  # the other images, by caller
        self._bytes: Counter[str | None] = Counter()  # by caller

    def admit(
        self, body_bytes: int, deadline: Deadline, charge: Charge | None = None, caller: str | None = None
    ) -> Permit:
        """Let in a request whose body has not been read; ``body_bytes`` is its declared length, 0 if it declares none.

        Its images are charged to ``charge``. ``caller`` is the name of the API key, else the client's address.

        Raises:
            OverloadedError: Limits are reached or the wait is too long (503); says when to retry.
            DeadlineExceededError: The deadline has passed (504).
        """
        self.check(deadline, caller)
        self.buffer(body_bytes, caller)
        return Permit(self, body_bytes, deadline, charge, caller)

    def check(self, deadline: Deadline, caller: str | None) -> None:
        """Raise OverloadedError (503) or DeadlineExceededError (504) unless another image can be classified in time."""
        deadline.check()
        self._measure()
        limit, ahead = self._config().admission.max_inflight_images, self._ahead(caller)
        wait_s = (ahead + min(ahead, self._config().max_group_size)) * self._images_done.item_s  # with its own group
        if self._in_stages[caller] >= FREE_MULTIPLE * (limit - self.images):
            raise OverloadedError(
                f"{self.images} images are already in flight (limit: admission.max_inflight_images = {limit}), "
                f"{self._in_stages[caller]} of them of this caller; retry later",
                wait_s,
            )
        if wait_s > deadline.left_s():
            raise OverloadedError(
                f"a result takes {wait_s:.1f} s now, longer than the request's deadline, in {deadline.left_s():.1f} s; "
                "retry later, or allow more time",
                wait_s,
            )

    def buffer(self, body_bytes: int, caller: str | None) -> None:
        """Count bytes of request bodies in memory, or raise OverloadedError (503) if they would exceed the limit."""
        limit = self._config().admission.max_buffered_bytes
        # A single request is bounded by limits.max_body_bytes, so it is let in whatever the limit.
        free = limit - self.buffered_bytes - body_bytes
        if self.buffered_bytes and self._bytes[caller] + body_bytes > FREE_MULTIPLE * free:
            raise OverloadedError(
                f"request bodies in memory have {self.buffered_bytes / 2**20:.0f} MB (limit: "
                f"admission.max_buffered_bytes = {limit / 2**20:.0f} MB), {self._bytes[caller] / 2**20:.0f} MB of them "
                "of this caller; retry later",
                self._ahead(caller) * self._images_done.item_s,
            )
        self.buffered_bytes += body_bytes
        _add(self._bytes, caller, body_bytes)

    def release(self, body_bytes: int, caller: str | None) -> None:
        """Count bytes as gone."""
        self.buffered_bytes -= body_bytes
        _add(self._bytes, caller, -body_bytes)

    def change(self, images: int, caller: str | None, completed: bool = False) -> None:
        """Count images that arrived (positive) or left (negative); other stages have worked on a completed image."""
        self._measure()
        if completed:
            self._images_done.complete(busy=self._busy())
        self.images += images
        _add(self._in_stages, caller, images)

    def complete_request(self) -> None:
        """Count a request some of whose images were completed."""
        self._measure()
        self._requests_done.complete(busy=self._busy())

    @contextmanager
    def fetch(self, caller: str | None) -> Iterator[None]:
        """Count an image as being fetched inside the block: a slow web server says nothing about the other stages.

        Raises:
            OverloadedError: Images by URL take their share of the places, a quarter; the rest is for uploads (503).
        """
        limit = max(1, self._config().admission.max_inflight_images // 4)
        if self.fetching >= limit:
            raise OverloadedError(
                f"{limit} images by URL are already in flight (limit: a quarter of admission.max_inflight_images); "
                "retry later"
            )
        self._measure()
        self.fetching += 1
        _add(self._in_stages, caller, -1)
        try:
            yield
        finally:
            self._measure()
            self.fetching -= 1
            _add(self._in_stages, caller, 1)

    def snapshot(self) -> dict[str, Any]:
        """Return the counts for GET /v1/status."""
        per_s = self._images_done.per_s
        return {"images": self.images, "buffered_bytes": self.buffered_bytes, "images_per_s": per_s and round(per_s, 1)}

    def busy_request_s(self) -> float | None:
        """Return the seconds per request while the stages are busy; None while that is not known."""
        return self._requests_done.item_s if self._requests_done.per_s else None

    def _ahead(self, caller: str | None) -> int:
        """Return how many images will be classified before another one of this caller.

        Those that the stages have go first. Of the others, callers take turns.
        """
        own = self._in_stages[caller]
        others = sum(min(images, own + 1) for other, images in self._in_stages.items() if other != caller)
        return min(self.images - self.fetching, self._config().stage_capacity + own + others)

    def _busy(self) -> bool:
        return self.images - self.fetching >= self._config().stage_capacity

    def _measure(self) -> None:
        now, busy = self._clock(), self._busy()
        for estimator in (self._images_done, self._requests_done):
            estimator.advance(now - self._measured_at, busy=busy)
        self._measured_at = now


def _add(counts: Counter[str | None], caller: str | None, count: int) -> None:
    """Add to a count; callers without one are forgotten."""
    counts[caller] += count
    if not counts[caller]:
        del counts[caller]


class Permit:
    """An admitted request and its deadline; leaving the block releases its images and bytes."""

    def __init__(
        self,
        controller: AdmissionController,
        body_bytes: int,
        deadline: Deadline,
        charge: Charge | None,
        caller: str | None,
    ) -> None:
        self.deadline, self.caller = deadline, caller
        self._controller, self._charge = controller, charge
        self._declared_bytes = self._bytes = body_bytes
        self._images = 0  # known once the body has been read
        self._fetched_bytes = 0
        self._completed = False  # whether the other stages have worked on an image

    def receive(self, body_bytes: int) -> None:
        """Count received bytes, or raise OverloadedError (503) if too many are in memory."""
        if not self._declared_bytes:  # declared bytes were counted on admission
            self.buffer(body_bytes)

    def buffer(self, body_bytes: int) -> None:
        """Count bytes that the request takes besides its body, or raise OverloadedError (503) if they are too many."""
        self._controller.buffer(body_bytes, self.caller)
        self._bytes += body_bytes

    def add_images(self, images: int) -> None:
        """Count the images of the body.

        Raises:
            OverloadedError: Other requests came first (503).
            DeadlineExceededError: The deadline has passed (504).
        """
        self._controller.check(self.deadline, self.caller)
        self._images += images
        self._controller.change(images, self.caller)
        if self._charge:
            self._charge.take_images(images)

    @contextmanager
    def fetch(self) -> Iterator[None]:
        """Count one of the images as being fetched inside the block."""
        with self._controller.fetch(self.caller):
            yield

    def add_fetched(self, size: int, limit: int) -> None:
        """Count the bytes of a fetched image like those of a body.

        Raises:
            TooLargeError: The request's fetched images have more bytes than its body may have (413).
            OverloadedError: Too many bytes are in memory (503).
        """
        self._fetched_bytes += size
        if self._fetched_bytes > limit:
            raise TooLargeError(
                f"the images that this request has fetched by URL have over {limit:,} bytes together "
                f"({limit / 2**20:.1f} MB), the limit"
            )
        self.buffer(size)
        if self._charge:
            self._charge.take_bytes(size)

    def finish_image(self, completed: bool) -> None:
        """Count an image as gone; one that the other stages have not completed says nothing about their throughput."""
        if self._images:
            self._images -= 1
            self._controller.change(-1, self.caller, completed)
            self._completed |= completed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._controller.change(-self._images, self.caller)
        self._controller.release(self._bytes, self.caller)
        if self._completed:
            self._controller.complete_request()
        self._images = self._bytes = 0
