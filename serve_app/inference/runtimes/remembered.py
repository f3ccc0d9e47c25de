"""The runtime that ``auto`` found fastest on this machine, kept on disk so that the next start measures nothing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from serve_app.files import CorruptFileError, atomic_write, create_folder, read_stored
from serve_app.model_card import ModelCard
from serve_app.paths import cache_folder
from serve_app.settings import FrozenModel

log = logging.getLogger("serve_app")
LIBRARIES = ("torch", "onnxruntime", "numba", "llvmlite")
# Lines of /proc/cpuinfo that name a CPU and its instructions, on x86 and on ARM.
CPU_LINES = ("model name", "stepping", "flags", "CPU implementer", "CPU part", "CPU variant", "Features")


class Choice(FrozenModel):
    """Content of the file."""

    runtime: str


class RememberedChoice:
    """The choice for a CPU, a number of cores, weights and versions of the code; each combination has a file.

    Args:
        card: Of the weights.
        cores: CPU cores that the runtime's batches share.
        batch_sizes: Sizes that are timed.
    """

    def __init__(self, card: ModelCard, cores: int, batch_sizes: Sequence[int]) -> None:
        key = {
            "cpu": _cpu(),
            "cores": cores,
            "weights": card.sha256,
            "crop_px": card.transform.crop_px,
            "batch_sizes": list(batch_sizes),
            "versions": {name: _version(name) for name in LIBRARIES},
            "code": _code(),
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self._path = cache_folder() / f"runtime-{digest[:32]}.json"

    def read(self) -> str | None:
        """Return the runtime; None if there is no such file or it cannot be read."""
        try:
            return read_stored(Choice, self._path).runtime
        except FileNotFoundError:
            return None
        except (OSError, CorruptFileError) as error:
            log.warning("%s cannot be read (%s); `auto` measures again", self._path, error)
            return None

    def write(self, runtime: str) -> None:
        """Keep the runtime; where the folder cannot be written to, the next start measures again."""
        try:
            create_folder(self._path.parent)
            with atomic_write(self._path) as unfinished:
                unfinished.write_text(Choice(runtime=runtime).model_dump_json())
        except OSError as error:
            log.warning("%s cannot be written (%s); the next start measures the runtimes again", self._path, error)


def _cpu() -> list[str]:
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        return [platform.machine(), *(line for line in first if line.startswith(CPU_LINES))]
    return [platform.machine(), platform.processor(), str(os.cpu_count())]


def _version(name: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _code() -> str:
    """Return a digest of the runtimes' source, which changes more often than the project's version."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
