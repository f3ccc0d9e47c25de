"""The service compared with its peers: ``make bench``.

In each round every system runs alone, one after the other: started, its answers checked, warmed up,
measured, stopped with all of its processes. Rounds repeat that, each beginning with another system,
so that whatever else the machine does meets all of them. README.md says how to read the results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import machine, report
from benchmarks.goals import goals_table
from benchmarks.images import write_photos
from benchmarks.measure import Plan, measure, measure_ceiling
from benchmarks.peers.environment import peers_python
from benchmarks.systems import CEILING, LOCAL, OURS, PEERS, System, ours
from benchmarks.weights import choose_weights, reference_top1
from tests.support.http_client import image_files
from tests.support.processes import end_on_signals

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Command line."""
    options = command_line().parse_args()
    end_on_signals()
    mine = our_systems(options.config, dict(options.env))
    systems: dict[str, System | None] = {CEILING: None, **mine, **PEERS}
    measured = [name for name in systems if selected(name, mine, options.systems)]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        plan = make_plan(options, Path(folder))
        if any(system and system.own_environment for name in measured if (system := systems[name])):
            peers_python()
        run: dict[str, Any] = {"machine": machine.describe(sys.argv[1:]), "ours": list(mine), "rounds": []}
        if options.add:
            run = earlier(options.out, run)
        first = len(run["rounds"])
        with tqdm(total=options.rounds * len(measured), unit="system") as progress:
            for number in range(first, first + options.rounds):
                results: dict[str, Any] = {}
                run["rounds"].append(results)
                for name in rotated(measured, number):
                    progress.set_description(f"round {number + 1}, {name}")
                    system = systems[name]
                    results[name] = measure(system, plan, number) if system else measure_ceiling(plan)
                    progress.update()
                    save(run, options.out)
        shutil.rmtree(options.out / "logs", ignore_errors=True)
        shutil.copytree(plan.logs, options.out / "logs")
    print(as_markdown(run))
    draw(run, options.out / "serving.svg")
    print(f"written to {options.out}")


def command_line() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--add", action="store_true", help="add the rounds to those that --out holds already")
    parser.add_argument("--systems", help=f"of {CEILING},{OURS},{','.join(PEERS)}; separated by commas (default: all)")
    parser.add_argument(
        "--config", action="append", default=[], help="Serve config for ours; name=FILE, repeated, compares several"
    )
    parser.add_argument(
        "--env", action="append", default=[], type=key_value, metavar="KEY=VALUE", help="for our Ray; repeated"
    )
    common_flags(parser)
    return parser


def common_flags(parser: argparse.ArgumentParser) -> None:
    """What this command and scaling.py share."""
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--clients", type=int, default=16, help="of the closed loop")
    parser.add_argument("--images", type=Path, help="folder of JPEG and PNG files (default: photo-like ones are made)")
    parser.add_argument("--weights", help="imagenet, demo or a .safetensors file (default: seeded random ones)")
    parser.add_argument("--out", type=Path, default=RESULTS)


def key_value(text: str) -> tuple[str, str]:
    """Read KEY=VALUE."""
    key, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def our_systems(configs: Sequence[str], environment: dict[str, str]) -> dict[str, System]:
    """Ours, once for each config; the first without a name of its own is just ``ours``."""
    found = {}
    for text in configs or [str(LOCAL)]:
        name, named, path = text.rpartition("=")
        label = f"{OURS}-{name}" if named else OURS
        if not Path(path).is_file():
            sys.exit(f"error: --config {text}: no such file")
        found[label] = ours(label, Path(path), environment)
    return found


def selected(name: str, mine: dict[str, System], names: str | None) -> bool:
    """Whether ``--systems`` names a system; ``ours`` names all configurations of ours."""
    chosen = names.split(",") if names else [CEILING, OURS, *PEERS]
    if unknown := set(chosen) - {CEILING, OURS, *PEERS, *mine}:
        sys.exit(
            f"error: --systems: {', '.join(sorted(unknown))}: unknown; there are {CEILING}, {OURS}, {', '.join(PEERS)}"
        )
    return name in chosen or (name in mine and OURS in chosen)


def rotated(systems: Sequence[str], by: int) -> list[str]:
    """The same systems, beginning with another one."""
    by %= len(systems)
    return [*systems[by:], *systems[:by]]


def make_plan(options: argparse.Namespace, folder: Path) -> Plan:
    """Images, weights and the answers that are expected."""
    images = options.images.resolve() if options.images else folder / "photos"
    if not options.images:
        write_photos(images)
    files = image_files(images)
    weights = choose_weights(options.weights, files, folder / "weights")
    logs = folder / "logs"
    logs.mkdir()
    return Plan(images, files, weights, reference_top1(weights, files), options.seconds, options.clients, logs)


def earlier(out: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The run that a folder holds, if it may go on: rounds of another code or machine say nothing about these."""
    path = out / "serving.json"
    if not path.is_file():
        return run
    found: dict[str, Any] = json.loads(path.read_text())
    for name in ("commit", "cpu", "versions"):
        was, now = found["machine"][name], run["machine"][name]
        if was != now:
            sys.exit(f"error: --add: {path} was measured with another {name}: {was}, now {now}")
    return found


def save(run: dict[str, Any], out: Path) -> None:
    """Write what there is so far: an interrupted run keeps its rounds."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "serving.json").write_text(json.dumps(run, indent=1) + "\n")
    (out / "serving.md").write_text(as_markdown(run))


def as_markdown(run: dict[str, Any]) -> str:
    """Return the report, with the goals as its end."""
    return "\n".join(part for part in (report.markdown(run), goals_table(run["rounds"])) if part)


def draw(run: dict[str, Any], path: Path) -> None:
    """Plot, where matplotlib is installed."""
    try:
        from benchmarks import plots
    except ImportError:
        print("no plot: matplotlib is missing (make setup EXTRAS=bench)")
        return
    plots.compare(run["rounds"], run["ours"], path)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; what was measured before is written")
