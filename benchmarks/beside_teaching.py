"""Teach heads on a running service: ``python -m benchmarks.beside_teaching FOLDER``, with a folder of photos per class.

Starts the service as `make run` does, without the page, with two Ingress replicas. Prints how long after the start of
an upload of 20 photos per class every replica answers with the new head, and what requests lose while a head is fitted
again every three seconds: pairs of loads without and with these fits, first full ones, then half of that rate.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import httpx2

from benchmarks import machine
from benchmarks.images import write_photos
from benchmarks.measure import WARM_UP_S
from benchmarks.report import table
from benchmarks.systems import OURS, ours, running
from benchmarks.weights import choose_weights
from tests.support import load
from tests.support.configs import changed, local, write
from tests.support.http_client import image_files
from tests.support.processes import end_on_signals

PER_CLASS = 20
HEADS = 3  # taught one after the other; only the first one waits for the libraries of a fit
IN_A_ROW = 40  # answers, each over a connection of its own, by which both replicas are taken to know a head
FIT_EVERY_S = 3.0
CLIENTS = 32
TIMEOUT_S = 60
JPEG = {"Content-Type": "image/jpeg"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=15, help="of each load")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    classes = {each.name: image_files(each) for each in sorted(options.folder.iterdir()) if each.is_dir()}
    if min(map(len, classes.values()), default=0) <= PER_CLASS:
        sys.exit(f"error: {options.folder} needs folders of more than {PER_CLASS} photos each")
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        files = write_photos(folder / "photos")
        weights = choose_weights("demo", files, folder)
        with running(ours(OURS, two_ingresses(folder), {}), weights, files[0], folder / "ours.log") as server:
            base = server.url.removesuffix("/v1/classify")
            taught = [teach(base, f"head-{number}", classes) for number in range(HEADS)]
            load.apply(server.url, folder / "photos", seconds=WARM_UP_S, clients=CLIENTS)
            rounds = [compare(server.url, base, folder / "photos", options.seconds) for _ in range(options.rounds)]
    run = {"machine": machine.describe(sys.argv[1:]), "taught": taught, "rounds": rounds}
    print(json.dumps(run, indent=1))
    print(report(taught, rounds))


def two_ingresses(folder: Path) -> Path:
    """Write configs/local.yaml with two replicas of the Ingress."""
    return write(changed(local(), "Ingress", num_replicas=2), folder)


def teach(base: str, name: str, classes: dict[str, list[Path]]) -> dict[str, float]:
    """Teach a head; return the seconds until the response, until the first answer with it, and the last one without."""
    form = [
        (label, (photo.name, photo.read_bytes(), "image/jpeg"))
        for label, photos in classes.items()
        for photo in photos[:PER_CLASS]
    ]
    other = next(iter(classes.values()))[PER_CLASS].read_bytes()
    start = time.monotonic()
    httpx2.put(f"{base}/v1/heads/{name}", files=form, timeout=TIMEOUT_S).raise_for_status()
    taught_s = time.monotonic() - start
    first_s = last_without_s = 0.0
    in_a_row = 0
    while in_a_row < IN_A_ROW:
        response = httpx2.post(f"{base}/v1/classify?head={name}", content=other, headers=JPEG, timeout=TIMEOUT_S)
        now_s = time.monotonic() - start
        if response.is_success:
            in_a_row, first_s = in_a_row + 1, first_s or now_s
        else:
            in_a_row, last_without_s = 0, now_s
    return {"taught_s": taught_s, "first_answer_s": first_s, "last_without_s": last_without_s}


def compare(url: str, base: str, photos: Path, seconds: float) -> dict[str, Any]:
    """Apply a full load, and one of half the images per second, each without and then with fits."""
    full = pair(url, base, photos, seconds, clients=CLIENTS)
    half = pair(url, base, photos, seconds, rate=full["without"]["images_per_s"] / 2)
    return {"full": full, "half": half}


def pair(url: str, base: str, photos: Path, seconds: float, **options: float) -> dict[str, Any]:
    """Apply a load without and then with fits."""
    without = load.apply(url, photos, seconds=seconds, **options)
    stop, fits = threading.Event(), list[float]()
    fitting = threading.Thread(target=fit_again, args=(base, stop, fits))
    fitting.start()
    beside = load.apply(url, photos, seconds=seconds, **options)
    stop.set()
    fitting.join()
    return {"without": without, "with": beside, "fits_s": fits}


def fit_again(base: str, stop: threading.Event, fits: list[float]) -> None:
    """Move a photo to the class that it has, which fits the head again, until told to stop."""
    examples = httpx2.get(f"{base}/v1/heads/head-0", timeout=TIMEOUT_S).raise_for_status().json()["examples"]
    while not stop.is_set():
        example, start = examples[len(fits) % len(examples)], time.monotonic()
        path = f"{base}/v1/heads/head-0/examples/{example['id']}"
        httpx2.patch(path, json={"class": example["class"]}, timeout=TIMEOUT_S).raise_for_status()
        fits.append(time.monotonic() - start)
        stop.wait(max(0.0, FIT_EVERY_S - fits[-1]))


def report(taught: list[dict[str, float]], rounds: list[dict[str, Any]]) -> str:
    """Return two tables."""
    head = ("head", "response s", "first answer s", "last answer without it s")
    rows = [(number, *(f"{value:.2f}" for value in each.values())) for number, each in enumerate(taught, 1)]
    return "\n".join(
        [
            table(head, rows),
            compared("images/s of a full load", [each["full"] for each in rounds], lambda of: of["images_per_s"]),
            compared("median ms at half of it", [each["half"] for each in rounds], lambda of: of["latency_ms"]["p50"]),
        ]
    )


def compared(title: str, pairs: list[dict[str, Any]], measure: Callable[[dict[str, Any]], float]) -> str:
    """Return a table of pairs of loads, and the median of their ratios."""
    figures = [(measure(each["without"]), measure(each["with"]), len(each["fits_s"])) for each in pairs]
    rows = [(f"{without:.1f}", f"{beside:.1f}", f"{beside / without:.3f}", fits) for without, beside, fits in figures]
    ratio = median(beside / without for without, beside, _ in figures)
    return f"{table((title, 'with fits', 'ratio', 'fits'), rows)}\nmedian ratio {ratio:.3f}\n"


if __name__ == "__main__":
    main()
