"""Time that a test controls: a clock to pass in place of ``time.monotonic``, and an event loop that never waits."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")


class FakeClock:
    """A clock that moves only when the test moves it; call it as ``time.monotonic`` is called.

    Attributes:
        now: Its time in seconds.
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self.now += seconds


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer as soon as no task can run.

    ``asyncio.sleep``, ``asyncio.timeout`` and ``loop.call_later`` end at once and in their order. The clock stands
    still while a task computes. Pass the loop's ``time`` to code that reads a clock of its own.

    The loop doesn't know about threads: it jumps over the time in which one works. Replace a worker thread by a
    coroutine that sleeps, or have the test wait for the thread's event.
    """

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Seconds of virtual time since the loop was created."""
        return self.now


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready now; else move the clock to the end of ``timeout``.

        Without a timer (``timeout`` is None) only a socket or a thread can wake the loop: wait for it.
        """
        ready = super().select(0 if timeout is not None else None)
        if not ready and timeout:
            self._loop.now += timeout
        return ready


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on a ``VirtualTimeLoop``; use as a decorator."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
