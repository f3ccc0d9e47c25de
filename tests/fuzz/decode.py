"""Decode many mutated files in child processes, and count the outcomes.

python -m tests.fuzz.decode --inputs 100000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from tests.fuzz.mutate import mutate, valid_files
from tests.fuzz.watch import decode


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.decode", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1, help="an input is the same for the same seed and number")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--max-seconds", type=float, default=10, help="per input")
    parser.add_argument("--max-mib", type=float, default=1200, help="per input")
    options = parser.parse_args()
    start = time.monotonic()
    workers = [(number, *_spawn(number, options)) for number in range(options.processes)]
    outcomes: Counter[str] = Counter()
    notes: list[dict[str, object]] = []
    for number, child, answer in workers:
        with os.fdopen(answer) as lines:
            last = -1
            for line in lines:
                if not line.endswith("\n"):
                    break
                report = json.loads(line)
                last = report.pop("at", last)
                outcomes.update(report.pop("outcomes", {}))
                notes += report.pop("notes", [])
        _, status = os.waitpid(child, 0)
        if code := os.waitstatus_to_exitcode(status):
            notes.append({"bad": f"process {number} ended with {code} at input {last}"})
    print(f"{sum(outcomes.values())} inputs in {time.monotonic() - start:.0f} s")
    for outcome, count in outcomes.most_common():
        print(f"{count:8} {outcome}")
    for what in ("slowest", "fattest"):
        print(max((note[what] for note in notes if what in note), key=lambda each: each[0], default=None), what)
    bad = [note["bad"] for note in notes if "bad" in note]
    for each in bad:
        print("BAD", each)
    sys.exit(bool(bad) or sum(outcomes.values()) != options.inputs)


def _spawn(number: int, options: argparse.Namespace) -> tuple[int, int]:
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    os.close(reader)
    with os.fdopen(writer, "w") as report:
        _work(number, options, report)
    os._exit(0)


def _work(number: int, options: argparse.Namespace, report: TextIO) -> None:
    """Decode every n-th input.

    Reports each number before its decode, so that the parent knows which input killed the process.
    """
    files = valid_files()
    outcomes: Counter[str] = Counter()
    notes: list[dict[str, object]] = []
    slowest: tuple[float, str] = (0.0, "")
    fattest: tuple[float, str] = (0.0, "")
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside a decoder
    for index in range(number, options.inputs, options.processes):
        print(json.dumps({"at": index}), file=report, flush=True)
        encoded = mutate(files, random.Random(f"{options.seed}/{index}"))
        signal.alarm(int(options.max_seconds * 3))
        cost = decode(encoded)
        signal.alarm(0)
        outcomes[cost.outcome if cost.clean else "raised"] += 1
        slowest = max(slowest, (round(cost.seconds, 3), f"s, input {index}: {cost.outcome}"))
        fattest = max(fattest, (round(cost.mib), f"MiB, input {index}: {cost.outcome}"))
        if not cost.clean or cost.seconds > options.max_seconds or cost.mib > options.max_mib:
            Path(f"fuzz-{options.seed}-{index}.bin").write_bytes(encoded)
            notes.append({"bad": f"input {index}: {asdict(cost)}"})
    notes += [{"slowest": slowest}, {"fattest": fattest}]
    print(json.dumps({"outcomes": outcomes, "notes": notes}), file=report, flush=True)


if __name__ == "__main__":
    main()
