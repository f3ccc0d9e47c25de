"""Results as pictures; needs the extra ``bench`` (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.report import THROUGHPUT, Rounds, Spread, across, cpu_parts, names

STYLE = {"svg.hashsalt": "benchmarks", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
OURS_COLOUR, OTHER_COLOUR = "#1f6fb2", "#b8bec5"
MOST_PARTS = 8


@mpl.rc_context(STYLE)
def compare(rounds: Rounds, ours: Sequence[str], path: Path) -> None:
    """Throughput with its spread, and CPU per image by process, of every system."""
    systems = [name for name in names(rounds) if across(rounds, name, THROUGHPUT)][::-1]
    figure = Figure(figsize=(11, 0.45 * len(systems) + 1.6))
    left, right = figure.subplots(1, 2, sharey=True)
    speed = [_known(across(rounds, name, THROUGHPUT)) for name in systems]
    colors = [OURS_COLOUR if name in ours else OTHER_COLOUR for name in systems]
    left.barh(systems, [s.median for s in speed], xerr=_errors(speed), color=colors, capsize=3)
    left.set_xlabel("images/s (bar: median of the rounds, line: least to most)")
    parts = {name: cpu_parts(rounds, name) for name in systems}
    total: dict[str, float] = {}
    for each in parts.values():
        for part, ms in each.items():
            total[part] = max(total.get(part, 0.0), ms)
    shown = sorted(total, key=lambda part: -total[part])[:MOST_PARTS]
    rest = {name: sum(ms for part, ms in each.items() if part not in shown) for name, each in parts.items()}
    start = [0.0] * len(systems)
    palette = mpl.colormaps["tab10"]
    for i, part in enumerate([*shown, "rest"]):
        widths = [rest[name] if part == "rest" else parts[name].get(part, 0.0) for name in systems]
        right.barh(systems, widths, left=start, label=part, color="#d9d9d9" if part == "rest" else palette(i))
        start = [a + b for a, b in zip(start, widths, strict=True)]
    right.set_xlabel("CPU ms per image, by process")
    right.legend(fontsize=7, loc="lower right")
    _save(figure, path)


@mpl.rc_context(STYLE)
def curves(sweeps: Mapping[str, Mapping[str, Spread | None]], path: Path) -> None:
    """One panel for each sweep: throughput over what was varied."""
    figure = Figure(figsize=(3.6 * len(sweeps), 3.2))
    panels = figure.subplots(1, len(sweeps), squeeze=False)[0]
    for panel, (title, sweep) in zip(panels, sweeps.items(), strict=True):
        labels = [label for label, value in sweep.items() if value]
        speed = [_known(sweep[label]) for label in labels]
        panel.errorbar(range(len(labels)), [s.median for s in speed], yerr=_errors(speed), marker="o", capsize=3)
        panel.set_xticks(range(len(labels)), labels)
        panel.set_ylim(bottom=0)
        panel.set_xlabel(title)
    panels[0].set_ylabel("images/s")
    _save(figure, path)


def _errors(values: Sequence[Spread]) -> list[list[float]]:
    return [[v.median - v.least for v in values], [v.most - v.median for v in values]]


def _known(value: Spread | None) -> Spread:
    assert value is not None
    return value


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
