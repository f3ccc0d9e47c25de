"""The last table of the report: each goal, what was measured, and by how much the rounds differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.report import CPU, LONE, THROUGHPUT, Rounds, Spread, pick, ratios, spread, table

OURS, CEILING, INT8 = "ours", "ceiling", "ours-int8"


class Goal(NamedTuple):
    """One line: what is compared, and the bound that it should reach."""

    name: str
    bound: float
    at_least: bool
    measure: Callable[[Rounds], Spread | None]

    def row(self, rounds: Rounds) -> tuple[object, ...] | None:
        """Return the cells of the table, or None if the run did not measure it."""
        if (found := self.measure(rounds)) is None:
            return None
        today = found.median
        reached = today >= self.bound if self.at_least else today <= self.bound
        relative = today / self.bound if self.at_least else self.bound / today
        noise = (found.most - found.least) / today if today else 0.0
        sign = "≥" if self.at_least else "≤"
        return self.name, f"{sign} {self.bound:g}", found, f"{relative:.2f}", f"{noise:.0%}", "yes" if reached else "no"


def _throughput(name: str, other: str, bound: float, ours: str = OURS) -> Goal:
    return Goal(name, bound, True, lambda rounds: ratios(rounds, ours, other, THROUGHPUT))


def _own_cpu(rounds: Rounds) -> Spread | None:
    """CPU ms per image of our processes beside what decoding and model cost without serving."""
    found = []
    for each in rounds:
        cpu, limit = pick(each.get(OURS, {}), CPU), pick(each.get(CEILING, {}), THROUGHPUT)
        processes = pick(each.get(CEILING, {}), ("ceiling", "processes"))
        found.append(cpu - processes * 1000 / limit if cpu and limit and processes else None)
    return spread(found)


GOALS = (
    _throughput("images/s, ours ÷ ceiling", CEILING, 0.85),
    Goal("CPU ms/image beside decoding and model", 4.0, False, _own_cpu),
    Goal("lone request p50, ours ÷ ceiling", 1.1, False, lambda rounds: ratios(rounds, OURS, CEILING, LONE)),
    _throughput("images/s, ours ÷ mosec_folded", "mosec_folded", 2.0),
    _throughput("images/s, ours ÷ litserve_folded", "litserve_folded", 2.5),
    _throughput("images/s, ours ÷ fastapi", "fastapi", 3.0),
    _throughput("images/s, ours in int8 ÷ mosec_folded", "mosec_folded", 2.5, INT8),
)


def goals_table(rounds: Rounds) -> str:
    """Return the table of the goals that a run measured; empty if there is none."""
    rows = [row for goal in GOALS if (row := goal.row(rounds))]
    if not rows:
        return ""
    head = ("goal", "bound", "today", "of the goal", "noise", "reached")
    return "## Goals\n\n" + table(head, rows)
