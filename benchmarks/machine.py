"""What a result was measured on and with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
OURS = ("ray", "torch", "torchvision", "pillow", "fastapi", "uvicorn", "onnxruntime")
PEERS = ("litserve", "mosec", "bentoml")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


def describe(arguments: Iterable[str]) -> dict[str, Any]:
    """Machine, versions, commit, date and arguments of a run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "arguments": list(arguments),
        "cpu": {"model": cpu_line("model name"), "cores": os.cpu_count(), "flags": flags()},
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def commit() -> str:
    """Short hash of the commit, with a plus if files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("status", "--porcelain") else "")


def cpu_line(key: str) -> str:
    """A line of /proc/cpuinfo."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return platform.processor() or "unknown"


def flags() -> list[str]:
    """Instruction sets that matter for neural networks, of those that the CPU has."""
    has = set(cpu_line("flags").split()) or set(cpu_line("Features").split())
    return [flag for flag in FLAGS if flag in has]


def versions() -> dict[str, str]:
    """Versions of what is installed for us, and for the peers in their environment."""
    found = {}
    folders = (ROOT / ".venv-peers" / "lib").glob("python*/site-packages")
    peers = {d.name: d.version for d in importlib.metadata.distributions(path=[str(folder) for folder in folders])}
    for name in OURS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {name: peers[name] for name in PEERS if name in peers}


def sentence(run: dict[str, Any]) -> str:
    """All of it in two lines of Markdown."""
    cpu, packages = run["cpu"], ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return (
        f"{run['date']}, commit {run['commit']}, `{' '.join(run['arguments']) or 'defaults'}`.\n"
        f"{cpu['model']}, {cpu['cores']} cores ({', '.join(cpu['flags']) or 'no vector flags known'}), "
        f"{run['memory_gb']} GB, Linux {run['kernel']}, Python {run['python']}; {packages}.\n"
    )
