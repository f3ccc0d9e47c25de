"""Rounds of measurements -> medians with their spread, ratios, Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.measure import MANY, SHARES

Rounds = Sequence[dict[str, dict[str, Any]]]
QUIET_CORES = 0.1
THROUGHPUT = ("closed", "images_per_s")
LONE = ("lone", "latency_ms", "p50")
CPU = ("cpu_ms_per_image_total",)


class Spread(NamedTuple):
    """What several rounds found."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        """As in a table: median (least – most)."""
        integers = all(isinstance(value, int) for value in self)
        digits = 0 if integers or self.median >= 1000 else 1 if self.median >= 10 else 2
        middle, least, most = (f"{value:.{digits}f}" for value in self)
        return middle if least == most else f"{middle} ({least}–{most})"


def spread(values: Sequence[float | None]) -> Spread | None:
    """Median, least and most of the values that there are."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return Spread(median(known), min(known), max(known)) if known else None


def pick(result: dict[str, Any], path: Sequence[str]) -> Any:
    """A value deep in a result; None where it was not measured."""
    value: Any = result
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def across(rounds: Rounds, system: str, path: Sequence[str]) -> Spread | None:
    """One number of a system over all rounds."""
    return spread([pick(each.get(system, {}), path) for each in rounds])


def ratios(rounds: Rounds, ours: str, other: str, path: Sequence[str]) -> Spread | None:
    """Ours divided by another's, taken within each round, over all rounds."""
    pairs = ((pick(each.get(ours, {}), path), pick(each.get(other, {}), path)) for each in rounds)
    return spread([a / b for a, b in pairs if a is not None and b])


def names(rounds: Rounds) -> list[str]:
    """Systems in the order of their throughput, fastest first; those that failed last."""
    found = dict.fromkeys(name for each in rounds for name in each)
    speed = {name: across(rounds, name, THROUGHPUT) for name in found}
    return sorted(found, key=lambda name: -(speed[name].median if speed[name] else -1))


def cpu_parts(rounds: Rounds, system: str) -> dict[str, float]:
    """Median CPU ms per image by process, largest first."""
    parts = {part for each in rounds for part in each.get(system, {}).get("cpu_ms_per_image", {})}
    middle = {part: across(rounds, system, ("cpu_ms_per_image", part)) for part in parts}
    known = {part: value.median for part, value in middle.items() if value and value.median >= 0.005}
    return dict(sorted(known.items(), key=lambda item: -item[1]))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    cells = [list(head), *([("–" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]) + "\n"


def markdown(run: dict[str, Any]) -> str:
    """The report."""
    rounds: Rounds = run["rounds"]
    systems = names(rounds)
    ours = [name for name in systems if name in run["ours"]]
    parts = [
        "# Serving, measured\n",
        machine.sentence(run["machine"]),
        f"{len(rounds)} rounds; numbers are medians over the rounds (least–most). How to read them: ../README.md.\n",
        "## Throughput, cost, latency\n",
        _main_table(rounds, systems),
        "## Open loop: random arrivals at a share of each system's own capacity\n",
        _open_table(rounds, systems),
    ]
    if ours:
        parts += ["## Ours against the others\n", _ratio_table(rounds, ours, systems)]
        parts += [f"## {MANY} images in one request\n", _many_table(rounds, ours)]
    parts += ["## CPU ms per image, by process\n", _cpu_lines(rounds, systems), _notes(rounds)]
    return "\n".join(part for part in parts if part)


def _main_table(rounds: Rounds, systems: Sequence[str]) -> str:
    def total_memory(name: str) -> Spread | None:
        return spread([sum(m.values()) if (m := each.get(name, {}).get("memory_mb")) else None for each in rounds])

    def share(name: str) -> str | None:
        found = across(rounds, name, ("agreement",))
        return f"{found.least:.1%}" if found else None

    def failures(name: str) -> int:
        loads = (each.get(name, {}) for each in rounds)
        return sum(pick(each, path) or 0 for each in loads for path in FAILURES)

    head = (
        "system",
        "images/s",
        "CPU ms/image",
        "lone request p50 ms",
        "memory MB",
        "batch",
        "top-1 agreement",
        "failures",
    )
    rows = [
        (
            name,
            across(rounds, name, THROUGHPUT),
            across(rounds, name, CPU),
            across(rounds, name, LONE),
            total_memory(name),
            across(rounds, name, ("closed", "mean_batch_size")),
            share(name),
            failures(name),
        )
        for name in systems
    ]
    return table(head, rows)


FAILURES = (("closed", "failures"), ("lone", "failures"), *(("open", str(share), "failures") for share in SHARES))


def _open_table(rounds: Rounds, systems: Sequence[str]) -> str:
    head = ["system", *(f"{share} %: {what}" for share in SHARES for what in ("images/s", "p50 ms", "p99 ms"))]
    columns = (("images_per_s",), ("latency_ms", "p50"), ("latency_ms", "p99"))
    paths = [("open", str(share), *path) for share in SHARES for path in columns]
    rows = [[name, *(across(rounds, name, path) for path in paths)] for name in systems]
    return table(head, [row for row in rows if any(row[1:])])


def _ratio_table(rounds: Rounds, ours: Sequence[str], systems: Sequence[str]) -> str:
    head = ("ours ÷ other, within each round", "images/s", "CPU per image", "lone request p50")
    rows = [
        (f"{mine} ÷ {other}", *(ratios(rounds, mine, other, path) for path in (THROUGHPUT, CPU, LONE)))
        for mine in ours
        for other in systems
        if other != mine
    ]
    return table(head, rows)


def _many_table(rounds: Rounds, ours: Sequence[str]) -> str:
    head = (
        "system",
        f"images/s, one request of {MANY}",
        f"images/s, {MANY} requests of one",
        "ratio within each round",
    )
    paths = (("many", "one_request", "images_per_s"), ("many", "single_requests", "images_per_s"), ("many", "ratio"))
    return table(head, [(name, *(across(rounds, name, path) for path in paths)) for name in ours])


def _cpu_lines(rounds: Rounds, systems: Sequence[str]) -> str:
    lines = [
        f"- **{name}**: " + ", ".join(f"{part} {ms:.2f}" for part, ms in parts.items())
        for name in systems
        if (parts := cpu_parts(rounds, name))
    ]
    return "\n".join(lines) + "\n"


def _notes(rounds: Rounds) -> str:
    """What to know before the numbers are believed."""
    notes = []
    for number, each in enumerate(rounds, 1):
        for name, result in each.items():
            where = f"- round {number}, {name}: "
            if "failed" in result:
                notes.append(where + f"not measured: {' '.join(result['failed'].split())[:400]}")
            if not result.get("agrees_as_it_should", True):
                notes.append(where + f"agrees with torchvision on {result['agreement']:.1%} only")
            if (other := result.get("other_cores", 0)) > QUIET_CORES:
                notes.append(where + f"{other:.2f} cores were busy with something else")
    return "## Notes\n\n" + "\n".join(notes) + "\n" if notes else ""
