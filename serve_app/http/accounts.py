"""What each caller has used at this ingress replica, and what its limits leave.

Replicas share no accounts: with n replicas a caller may send up to n times as much.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Self

from serve_app.config import KeysConfig
from serve_app.http.rate_limit import TokenBucket
from serve_app.http.schemas import Quota


class Meter:
    """Counts one unit, images or bytes, of one caller; under a rate limit if there is one."""

    def __init__(self, unit: str, clock: Callable[[], float]) -> None:
        self._unit, self._clock = unit, clock
        self._total = 0
        self._bucket: TokenBucket | None = None

    def reconfigure(self, rate: float | None, capacity: int) -> None:
        """Use another limit; None removes it."""
        if rate is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = TokenBucket(rate, capacity, self._clock, self._unit)
        else:
            self._bucket.reconfigure(rate, capacity)

    def check(self) -> None:
        """Raise RateLimitedError (429) if the limit is reached."""
        if self._bucket:
            self._bucket.check()

    def take(self, count: int) -> None:
        """Count images or bytes."""
        self._total += count
        if self._bucket:
            self._bucket.take(count)

    def quota(self) -> Quota:
        """Return what was used, and what may be used now."""
        if self._bucket is None:
            return Quota(used=self._total, total=self._total)
        limit, remaining = self._bucket.capacity, max(0, math.floor(self._bucket.tokens()))
        return Quota(used=limit - remaining, limit=limit, remaining=remaining, total=self._total)


class Account:
    """The meters of one caller."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.images, self.bytes = Meter("images", clock), Meter("bytes", clock)

    def check(self) -> None:
        """Raise RateLimitedError (429) if a limit is reached."""
        self.images.check()
        self.bytes.check()


class Accounts:
    """The accounts of all callers. They outlive changes of the settings, so a change refills no bucket.

    Args:
        config: Returns the limits of each key now.
        clock: Returns seconds.
    """

    def __init__(self, config: Callable[[], KeysConfig], clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._accounts: dict[str | None, Account] = {}

    def of(self, caller: str | None) -> Account:
        """Return a caller's account; callers without a key share one, which has no limits."""
        account = self._accounts.setdefault(caller, Account(self._clock))
        config = self._config()
        account.images.reconfigure(config.images_per_s if caller else None, config.burst)
        account.bytes.reconfigure(config.bytes_per_s if caller else None, config.burst_bytes)
        return account


class Charge:
    """What one request costs its caller. A request without images costs as much as one image."""

    def __init__(self, account: Account) -> None:
        self._account, self._images = account, 0

    def take_images(self, images: int) -> None:
        """Charge images."""
        self._images += images
        self._account.images.take(images)

    def take_bytes(self, size: int) -> None:
        """Charge bytes of the body."""
        self._account.bytes.take(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._images:
            self.take_images(1)
