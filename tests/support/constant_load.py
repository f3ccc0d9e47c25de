"""A steady load of single images, with the outcome of each request."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2

TIMEOUT_S = 40


@dataclass(frozen=True)
class Outcome:
    """What one request got.

    Attributes:
        at: When it was sent, in seconds since the epoch.
        ms: Time until its end, in milliseconds.
        outcome: ``200``, another status with the response's body, or the client's error.
        version: X-Model-Version, if there is one.
        label: The best label, after 200.
    """

    at: float
    ms: float
    outcome: str
    version: str | None = None
    label: str | None = None


@dataclass
class ConstantLoad:
    """Sends ``rate`` requests a second over ``clients`` kept-alive connections; fewer while all connections wait."""

    url: str
    image: bytes
    rate: float = 20
    clients: int = 8
    outcomes: list[Outcome] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[ConstantLoad]:
        """Send until the block ends."""
        over = threading.Event()
        threads = [threading.Thread(target=self._run, args=(number, over)) for number in range(self.clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def failed(self) -> list[Outcome]:
        """Return the requests that got no 200."""
        return [outcome for outcome in self.outcomes if outcome.outcome != "200"]

    def versions(self) -> Counter[str | None]:
        """Count the responses of each version."""
        return Counter(outcome.version for outcome in self.outcomes if outcome.outcome == "200")

    def _run(self, number: int, over: threading.Event) -> None:
        period = self.clients / self.rate
        due = time.monotonic() + period * number / self.clients
        with httpx2.Client(timeout=TIMEOUT_S) as client:
            while not over.wait(max(0.0, due - time.monotonic())):
                self.outcomes.append(self._send(client))
                due = max(due + period, time.monotonic())

    def _send(self, client: httpx2.Client) -> Outcome:
        at = time.time()
        start = time.perf_counter()
        version = label = None
        try:
            response = client.post(self.url, content=self.image)
            version = response.headers.get("x-model-version")
            outcome = str(response.status_code)
            if response.status_code == 200:
                label = response.json()["results"][0]["predictions"][0]["label"]
            else:
                outcome += f" {response.text:.200}"
        except httpx2.HTTPError as error:
            outcome = f"{type(error).__name__}: {error}"
        return Outcome(at, (time.perf_counter() - start) * 1000, outcome, version, label)
