"""Write the results of a run as Markdown."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

Sections = dict[str, dict[str, Any]]


def machine(arguments: Iterable[str]) -> dict[str, Any]:
    """Describe the machine; facts that cannot be read are left out."""
    import torch

    found: dict[str, Any] = {
        "arguments": list(arguments),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    try:
        from benchmarks.machine import describe

        found |= describe(arguments)
    except Exception as error:  # psutil or git may be missing
        found["unread"] = f"{type(error).__name__}: {error}"
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": card.name,
            "memory_gib": round(card.total_memory / 2**30, 1),
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.draw", "--format=csv,noheader"]
        try:
            found["gpu"]["nvidia_smi"] = subprocess.run(
                query, capture_output=True, text=True, timeout=20
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            found["gpu"]["nvidia_smi"] = str(error)
    return found


def markdown(result: dict[str, Any]) -> str:
    """Write the tables, then the other results, then the sections that failed."""
    sections: Sections = result["sections"]
    of = result["machine"]
    gpu = of.get("gpu", {})
    lines = [
        "# The GPU engine, measured",
        "",
        f"{gpu.get('name', 'no GPU')}, {of.get('cpu', {}).get('cores', '?')} CPU cores, torch {of['torch']}, "
        f"cuDNN {gpu.get('cudnn', '?')}, Python {of['python']}, {of.get('date', '')}, commit {of.get('commit', '?')}.",
        "",
    ]
    for title, rows in (
        ("Checks", _checks(sections)),
        ("Forward pass, images/s (times eager fp32)", _forward(sections)),
        ("Share of the machine's measured rates", _of(sections, "speed/limits", "image")),
        ("Single image, host to host", _of(sections, "inside/lone-image")),
        ("Host to host, images/s", _of(sections, "inside/workers")),
        ("Stages of a batch, ms", _of(sections, "inside/stages-of-a-batch")),
        ("GPU memory by largest batch", _of(sections, "inside/memory")),
    ):
        if rows:
            lines += [f"## {title}", "", *rows, ""]
    rest = ("speed/machine", "speed/warm-up", "inside/choices", "inside/kernels")
    for name, found in sections.items():
        if name in rest or name.startswith(("compile/", "pipeline/", "served/", "checks/workers", "checks/uninit")):
            lines += [f"## {name}", "", "```", *_flat(found), "```", ""]
    wrong = [
        f"- {name}: {found.get('error') or found.get('skipped')}" for name, found in sections.items() if _lost(found)
    ]
    return "\n".join([*lines, "## Not measured", "", *(wrong or ["Nothing."]), ""])


def _lost(found: dict[str, Any]) -> bool:
    return "error" in found or "skipped" in found


def _checks(sections: Sections) -> list[str]:
    rows = [
        [
            name.removeprefix("checks/"),
            "yes" if found["ok"] else "**NO**",
            f"{found['top1_agreement']:.4f}",
            f"{found['largest_score_difference']:.1e}",
            f"{found['batch_against_singles']:.1e}",
            f"{found['maps_add_up_within']:.1e}",
            str(found["runtime"]["fused"]),
        ]
        for name, found in sections.items()
        if name.startswith("checks/") and "top1_agreement" in found
    ]
    head = [
        "weights, precision",
        "ok",
        "top-1 as eager",
        "largest difference",
        "batch − singles",
        "map − logit",
        "fused",
    ]
    return _table(head, rows)


def _forward(sections: Sections) -> list[str]:
    sizes = {size: found for size, found in sections.get("speed/forward", {}).items() if size.isdigit()}
    names = list(dict.fromkeys(name for found in sizes.values() for name in found))
    rows = [
        [size, *(f"{found[name]['images_s']} ({found[name]['ratio']})" if name in found else "" for name in names)]
        for size, found in sorted(sizes.items(), key=lambda pair: int(pair[0]))
    ]
    return _table(["batch", *names], rows)


def _of(sections: Sections, section: str, *without: str) -> list[str]:
    """Write a section whose values all have the same keys as a table."""
    found = {k: v for k, v in sections.get(section, {}).items() if isinstance(v, dict) and k not in without}
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    return _table(
        ["", *names], [[key, *(str(values.get(name, "")) for name in names)] for key, values in found.items()]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _flat(found: Any, path: str = "") -> list[str]:
    """Write nested values, one per line."""
    if isinstance(found, dict):
        return [line for key, value in found.items() if key != "traceback" for line in _flat(value, f"{path} {key}")]
    if isinstance(found, list):
        return [
            line
            for value in found
            for line in (_flat(value, path) if isinstance(value, list) else [f"{path}: {value}"])
        ]
    return [f"{path.strip()}: {found}"]
