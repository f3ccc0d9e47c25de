"""Admission control: lets a request in if its images can be classified in time, else refuses it with its body unread.

One ingress replica knows how many of its images are in flight. It measures how many images per second come back while
the other stages are busy. The first number divided by the second is the expected wait of a new image. While too few
completions have been measured, only the hard limits apply.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from serve_app.config import IngressConfig
from serve_app.deadline import Deadline
from serve_app.errors import OverloadedError, TooLargeError
from serve_app.http.accounts import Charge

DECAY_S = 5.0  # time constant: a change of throughput is known after about this long
MIN_COMPLETIONS = 16  # completions needed before the estimate is trusted in full


class ThroughputEstimator:
    """Estimates how many images per second the other stages finish while they are busy."""

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
        """Add a completed image."""
        self._total_done += 1
        self._busy_done += busy

    @property
    def image_s(self) -> float:
        """Lower estimate of the seconds per image.

        A short stall looks like a slow model, so the estimate is capped by the overall throughput.
        """
        return min(self._busy_s / max(self._busy_done, MIN_COMPLETIONS), self._total_s / max(self._total_done, 1.0))

    @property
    def images_per_s(self) -> float | None:
        """Throughput while busy; None before ``MIN_COMPLETIONS``."""
        return self._busy_done / self._busy_s if self._busy_done >= MIN_COMPLETIONS else None

    def seconds_for(self, images: int) -> float:
        """Return the expected time for a number of images, in seconds."""
        return max(images, 0) * self.image_s


class AdmissionController:
    """Counts the images and bytes of one ingress replica and refuses requests that would wait too long."""

    def __init__(self, config: Callable[[], IngressConfig], clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._throughput, self._measured_at = ThroughputEstimator(), clock()
        self.images = self.buffered_bytes = 0
        self.fetching = 0  # of the images, those that are being fetched by URL and that no other stage works on yet

    def admit(self, body_bytes: int, deadline: Deadline, charge: Charge | None = None) -> Permit:
        """Let in a request whose body has not been read; ``body_bytes`` is its declared length, 0 if it declares none.

        Its images are charged to ``charge``.

        Raises:
            OverloadedError: Limits are reached or the wait is too long (503); says when to retry.
            DeadlineExceededError: The deadline has passed (504).
        """
        self.check(deadline)
        self.buffer(body_bytes)
        return Permit(self, body_bytes, deadline, charge)

    def check(self, deadline: Deadline) -> None:
        """Raise OverloadedError (503) or DeadlineExceededError (504) unless another image can be classified in time."""
        deadline.check()
        self._measure()
        limits = self._config().admission
        in_stages = self.images - self.fetching
        waiting = in_stages - self._config().stage_capacity
        wait_s = self._throughput.seconds_for(waiting)
        if self.images >= limits.max_inflight_images:
            raise OverloadedError(
                f"{self.images} images are already in flight (limit: admission.max_inflight_images = "
                f"{limits.max_inflight_images}); retry later",
                wait_s,
            )
        if wait_s > limits.max_queue_wait_s:
            raise OverloadedError(
                f"an image would wait {wait_s:.1f} s (limit: admission.max_queue_wait_s = "
                f"{limits.max_queue_wait_s:g}); retry later",
                wait_s,
            )
        if waiting > 0 and (total_s := self._throughput.seconds_for(in_stages)) > deadline.left_s():
            raise OverloadedError(f"a result takes {total_s:.1f} s now, longer than the request's deadline", total_s)

    def buffer(self, body_bytes: int) -> None:
        """Count bytes of request bodies in memory, or raise OverloadedError (503) if they would exceed the limit."""
        limit = self._config().admission.max_buffered_bytes
        # A single request is bounded by limits.max_body_bytes, so it is let in whatever the limit.
        if self.buffered_bytes and self.buffered_bytes + body_bytes > limit:
            raise OverloadedError(
                f"request bodies in memory have {self.buffered_bytes / 2**20:.0f} MB (limit: "
                f"admission.max_buffered_bytes = {limit / 2**20:.0f} MB); retry later"
            )
        self.buffered_bytes += body_bytes

    def change(self, images: int, completed: bool = False) -> None:
        """Count images that arrived (positive) or left (negative); other stages have worked on a completed image."""
        self._measure()
        if completed:
            self._throughput.complete(busy=self._busy())
        self.images += images

    @contextmanager
    def fetch(self) -> Iterator[None]:
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
        try:
            yield
        finally:
            self._measure()
            self.fetching -= 1

    def snapshot(self) -> dict[str, Any]:
        """Return the counts for GET /v1/status."""
        per_s = self._throughput.images_per_s
        return {"images": self.images, "buffered_bytes": self.buffered_bytes, "images_per_s": per_s and round(per_s, 1)}

    def _busy(self) -> bool:
        return self.images - self.fetching >= self._config().stage_capacity

    def _measure(self) -> None:
        now = self._clock()
        self._throughput.advance(now - self._measured_at, busy=self._busy())
        self._measured_at = now


class Permit:
    """An admitted request and its deadline; leaving the block releases its images and bytes."""

    def __init__(
        self, controller: AdmissionController, body_bytes: int, deadline: Deadline, charge: Charge | None
    ) -> None:
        self.deadline = deadline
        self._controller, self._charge = controller, charge
        self._declared_bytes = self._bytes = body_bytes
        self._images = 0  # known once the body has been read
        self._fetched_bytes = 0

    def receive(self, body_bytes: int) -> None:
        """Count received bytes, or raise OverloadedError (503) if too many are in memory."""
        if not self._declared_bytes:  # declared bytes were counted on admission
            self.buffer(body_bytes)

    def buffer(self, body_bytes: int) -> None:
        """Count bytes that the request takes besides its body, or raise OverloadedError (503) if they are too many."""
        self._controller.buffer(body_bytes)
        self._bytes += body_bytes

    def add_images(self, images: int) -> None:
        """Count the images of the body.

        Raises:
            OverloadedError: Other requests came first (503).
            DeadlineExceededError: The deadline has passed (504).
        """
        self._controller.check(self.deadline)
        self._images += images
        self._controller.change(images)
        if self._charge:
            self._charge.take_images(images)

    @contextmanager
    def fetch(self) -> Iterator[None]:
        """Count one of the images as being fetched inside the block."""
        with self._controller.fetch():
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
            self._controller.change(-1, completed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._controller.change(-self._images)
        self._controller.buffered_bytes -= self._bytes
        self._images = self._bytes = 0
