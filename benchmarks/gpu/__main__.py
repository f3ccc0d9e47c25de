"""Check and time the GPU engine in one run of under eight minutes: ``python -m benchmarks.gpu --out FILE.json``.

Each part runs in its own process with a time limit and writes each result to disk at once, so an error, a hang or a
lost GPU costs one section and not the run. The script needs torch, torchvision, numpy, pillow, psutil, tqdm, pydantic,
safetensors and fsspec. It needs neither ONNX nor, except for the part ``served``, Ray and FastAPI.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Time limit of each part, in seconds.
PARTS = {"checks": 110, "speed": 165, "pipeline": 115, "served": 110, "compiled": 70}
NEEDED = {
    **{name: name for name in ("torch", "torchvision", "numpy", "psutil", "tqdm", "pydantic", "safetensors", "fsspec")},
    "PIL": "pillow",
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("gpu.json"), help="JSON file to write; the report is written beside it as .md"
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), help=f"parts to run, separated by commas: {', '.join(PARTS)}"
    )
    parser.add_argument("--seconds", type=float, default=460.0, help="time limit of all parts together")
    parser.add_argument(
        "--cpu-smoke", action="store_true", help="run everything on the CPU with tiny sizes, to test the script"
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(options.part, options.journal, options.seconds, options.cpu_smoke)
        return
    if missing := [package for name, package in NEEDED.items() if importlib.util.find_spec(name) is None]:
        sys.exit(f"error: not installed here: pip install {' '.join(missing)}")
    if not (options.cpu_smoke or gpu_available()):
        sys.exit("error: PyTorch finds no NVIDIA GPU here; use --cpu-smoke to test the script without one")
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        journal = Path(folder) / "journal"
        journal.touch()
        run_parts(options, journal)
        report(options, journal)


def gpu_available() -> bool:
    """Report whether PyTorch finds a GPU."""
    import torch

    return torch.cuda.is_available()


def run_parts(options: argparse.Namespace, journal: Path) -> None:
    """Run the parts one after the other, each in a process that is killed when its time is up."""
    ends = time.monotonic() + options.seconds
    for part in options.parts.split(","):
        if options.cpu_smoke:
            run_part(part, journal, math.inf, smoke=True)
            continue
        seconds = min(PARTS[part], ends - time.monotonic())
        print(f"{part}: up to {seconds:.0f} s", flush=True)
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--journal", str(journal)]
        child = subprocess.Popen([*command, "--seconds", str(seconds)], cwd=ROOT, start_new_session=True)
        try:
            status: object = child.wait(seconds + 10)
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # the part and the processes that it started
                child.wait()
        if status:
            note(journal, f"{part}/ended", f"the process ended with {status}")


def run_part(part: str, path: Path, seconds: float, smoke: bool) -> None:
    """Run one part in this process."""
    ends = time.monotonic() + seconds
    try:
        from benchmarks.gpu.common import Journal, Scale

        importlib.import_module(f"benchmarks.gpu.{part}").run(Journal(path, ends), Scale(smoke))
    except Exception:  # an import failed; errors inside a section are recorded by the section
        note(path, f"{part}/ended", traceback.format_exc()[-3000:])


def note(journal: Path, section: str, error: str) -> None:
    """Append an error to the journal."""
    with journal.open("a") as file:
        file.write(json.dumps({"section": section, "error": error}) + "\n")


def report(options: argparse.Namespace, journal: Path) -> None:
    """Write the results as JSON and as Markdown, and print the Markdown."""
    from benchmarks.gpu.report import machine, markdown

    sections: dict[str, Any] = {}
    for line in journal.read_text().splitlines():
        section = json.loads(line)
        sections[section.pop("section")] = section
    result = {"machine": machine(sys.argv[1:]), "sections": sections}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
