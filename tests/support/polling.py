"""Waiting for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

POLL_S = 0.2
T = TypeVar("T")


def wait_for(value: Callable[[], T], timeout_s: float = 240, what: str = "the condition") -> T:
    """Call a function until it returns something true, and return that.

    Args:
        value: Called every 0.2 s.
        timeout_s: Raise it rather than lower it: a busy machine is slow, and only a failing test waits so long.
        what: For the error message.

    Raises:
        AssertionError: Time is over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if found := value():
            return found
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s:.0f} s; last value: {found!r}"
        time.sleep(POLL_S)
