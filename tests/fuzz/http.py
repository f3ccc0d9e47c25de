"""Send hostile requests to a running service: each gets a response below 500, no replica dies, and memory stays flat.

The first quarter of the requests warms the service up; after it, the memory of the replicas may grow by a tenth.

python -m tests.fuzz.http http://127.0.0.1:8000 --dashboard http://127.0.0.1:8265 --inputs 2000
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
import psutil

from tests.fuzz.kinds import broken
from tests.fuzz.mutate import mutate, valid_files

TIMEOUT_S = 40.0
MAX_GROWTH = 0.1  # of the replicas' memory, after the first quarter of the requests
SLOW_PIECES, SLOW_PAUSE_S = 20, 0.25  # of a request that is sent slowly


@dataclass(frozen=True)
class Outcome:
    """The outcome of one request.

    Attributes:
        kind: Kind of request.
        status: HTTP status; 0 when the connection was closed without an answer.
        seconds: Until the status line arrived.
    """

    kind: str
    status: int
    seconds: float


def send(address: tuple[str, int], kind: str, raw: bytes) -> Outcome:
    """Send bytes and read the status line.

    After a request that is cut short or half-closed, close our half of the connection. Send a slow one in pieces.
    """
    start = time.perf_counter()
    answer = b""
    with socket.create_connection(address, TIMEOUT_S) as connection:
        try:
            size = -(-len(raw) // SLOW_PIECES) if kind.startswith("slow") else len(raw)
            for at in range(0, len(raw), max(size, 1)):
                connection.sendall(raw[at : at + size])
                if size < len(raw):
                    time.sleep(SLOW_PAUSE_S)
        except ConnectionError:  # refused before its end; TCP may then lose the answer
            kind = f"cut off by the server: {kind}"
        with suppress(OSError):
            if kind.startswith(("cut", "half")):
                connection.shutdown(socket.SHUT_WR)
            while b"\r\n" not in answer and (part := connection.recv(65536)):
                answer += part
    words = answer.partition(b"\r\n")[0].split()
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    return Outcome(kind, status, time.perf_counter() - start)


def replicas(dashboard: str) -> dict[str, int]:
    """Return the process id of each replica by its id."""
    apps = httpx2.get(f"{dashboard}/api/serve/applications/", timeout=30).json()["applications"]
    return {
        replica["replica_id"]: replica["pid"]
        for app in apps.values()
        for deployment in app["deployments"].values()
        for replica in deployment["replicas"]
    }


def memory_mib(pids: Iterable[int]) -> float:
    """Return the resident memory of processes; a dead one has none."""
    total = 0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_info().rss
    return total / 2**20


def attack(api: str, inputs: range, seed: int, clients: int = 4) -> list[Outcome]:
    """Send the requests of these numbers, with mutated images, ``clients`` at a time; a seed sends the same bytes."""
    parts = urlsplit(api)
    address = (str(parts.hostname), int(parts.port or 80))
    files = valid_files()

    def one(index: int) -> Outcome:
        chance = random.Random(f"{seed}/{index}")
        return send(address, *broken(chance, mutate(files, chance)))

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, inputs))


def failures(outcomes: list[Outcome]) -> list[Outcome]:
    """Return the outcomes that must not occur: a 5xx, or no response to a complete request."""
    return [each for each in outcomes if each.status >= 500 or (not each.status and not each.kind.startswith("cut"))]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.http", description=__doc__)
    parser.add_argument("api")
    parser.add_argument("--dashboard", required=True, help="of Ray: knows the replicas' process ids")
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=12, help="at once; many of them only wait for the server")
    options = parser.parse_args()
    before = replicas(options.dashboard)
    outcomes: list[Outcome] = []
    memory: list[float] = []
    for quarter in range(4):
        inputs = range(quarter * options.inputs // 4, (quarter + 1) * options.inputs // 4)
        outcomes += attack(options.api, inputs, options.seed, options.clients)
        memory.append(memory_mib(before.values()))
    after = replicas(options.dashboard)
    counts = Counter((each.kind, each.status) for each in outcomes)
    for (kind, status), count in sorted(counts.items()):
        print(f"{count:6}  {status or 'closed':>6}  {kind}")
    slowest = max(outcomes, key=lambda each: each.seconds)
    print(f"{len(outcomes)} requests; slowest {slowest.seconds:.2f} s ({slowest.kind}, {slowest.status})")
    print(f"replicas before and after: {'the same' if before == after else (before, after)}")
    print(f"memory of the replicas after each quarter: {', '.join(f'{mib:.0f}' for mib in memory)} MiB")
    failed, grew = failures(outcomes), memory[-1] > memory[0] * (1 + MAX_GROWTH)
    for each in failed[:20]:
        print("BAD", each)
    alive = httpx2.get(f"{options.api}/readyz", timeout=10).status_code == 200
    sys.exit(bool(failed) or before != after or grew or not alive)


if __name__ == "__main__":
    main()
