"""Requests that keep coming while something is done to the service, each answer noted."""

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
class Seen:
    """One request.

    Attributes:
        at: When it was sent.
        ms: How long it took.
        outcome: ``200``, another status with its body, or what the client says.
        version: X-Model-Version, where there is one.
        said: The best label.
    """

    at: float
    ms: float
    outcome: str
    version: str | None = None
    said: str | None = None


@dataclass
class ConstantLoad:
    """``rate`` requests a second over ``clients`` kept-alive connections, fewer while all of these wait."""

    url: str
    image: bytes
    rate: float = 20
    clients: int = 8
    seen: list[Seen] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[ConstantLoad]:
        """Keep them coming until the end of the block."""
        self._over = threading.Event()
        threads = [threading.Thread(target=self._run, args=(i,)) for i in range(self.clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def failed(self) -> list[Seen]:
        """What was not answered with 200."""
        return [one for one in self.seen if one.outcome != "200"]

    def versions(self) -> Counter[str | None]:
        """How many answers each version gave."""
        return Counter(one.version for one in self.seen if one.outcome == "200")

    def _run(self, number: int) -> None:
        period = self.clients / self.rate
        due = time.monotonic() + period * number / self.clients
        with httpx2.Client(timeout=TIMEOUT_S) as client:
            while not self._over.wait(max(0.0, due - time.monotonic())):
                self.seen.append(self._ask(client))
                due = max(due + period, time.monotonic())

    def _ask(self, client: httpx2.Client) -> Seen:
        at = time.time()
        start = time.perf_counter()
        version = said = None
        try:
            response = client.post(self.url, content=self.image)
            version = response.headers.get("x-model-version")
            outcome = str(response.status_code)
            if response.status_code == 200:
                said = response.json()["results"][0]["predictions"][0]["label"]
            else:
                outcome += f" {response.text:.200}"
        except httpx2.HTTPError as error:
            outcome = f"{type(error).__name__}: {error}"
        return Seen(at, (time.perf_counter() - start) * 1000, outcome, version, said)
