"""Kill a whole service while it writes, again and again, and start it again: nothing acknowledged may be lost.

python -m tests.fuzz.power_cut --rounds 10

Every round ends with SIGKILL to all processes at once. Every second round then also loses what no fsync had put on disk
(tests/support/power_cut.py). The service of the next round finds the same folders.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.power_cut import cut, kill, recording
from tests.support.running import start
from tests.support.writing_day import Writer, Writes, check, writing_config

SECONDS = 3  # at least, after each kind of write was acknowledged


@dataclass(frozen=True)
class Round:
    """The outcome of one round.

    Attributes:
        written: How many writes of each kind were acknowledged, in all rounds so far.
        lost: Files that the power cut emptied or removed; None for SIGKILL alone.
        problems: What the next service did not have, a sentence each.
    """

    written: dict[str, int]
    lost: list[str] | None
    problems: list[str]


def rounds(folder: Path, power_cuts: list[bool], seed: int = 1) -> Iterator[Round]:
    """Run a service in a folder and end it once per item: with a power cut if the item is true, else with SIGKILL.

    The next service finds the same folder, is checked, and is the one that the next round ends.
    """
    data, writes, chance = folder / "data", Writes(), random.Random(seed)
    died_at, lost = 0.0, None
    for number, has_power_cut in enumerate([*power_cuts, None]):
        log, since_ns = folder / f"fsyncs-{number}", time.time_ns()
        environment = recording(log)
        with start(writing_config(data), page=False, environment=environment) as running:
            if number:
                yield Round(writes.counts(), lost, check(writes, running.api, data, died_at))
                writes.forget_unflushed(died_at)
            if has_power_cut is None:
                return
            with Writer(running.api, data, writes, f"round{number}", environment) as writer:
                writer.wait_for_each_kind()
                time.sleep(SECONDS + chance.random() * 3)
                died_at = time.time()
                kill([*running.processes(), *writer.programs])
            running.process.wait()
        lost = cut(data, log, since_ns) if has_power_cut else None


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.power_cut", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="power-cut-") as folder:
        power_cuts = [bool(number % 2) for number in range(options.rounds)]
        for number, each in enumerate(rounds(Path(folder), power_cuts, options.seed)):
            print(f"round {number}: {each.written}", flush=True)
            if each.lost is not None:
                print(f"  not on disk: {each.lost}")
            for problem in each.problems:
                print(f"  BAD {problem}")
            failed |= bool(each.problems)
    sys.exit(failed)


if __name__ == "__main__":
    main()
