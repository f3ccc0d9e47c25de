"""Measure taught heads: ``python -m benchmarks.teach DATA [--draws 100]`` prints a JSON line per set and size.

DATA holds ``train/grocery.tar`` (Grocery Store Dataset), ``photos-train.tar`` (with folders ``pacs`` and Caltech's
``background_google``) and ``train/imagenette.tar``; in each a photo's class is its folder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.teach.experiments import accuracy, draw, flip, known_and_unknown, reference_accuracy, teach
from benchmarks.teach.photos import Embedded, embed

MOST = 40  # photos per class that are embedded
SIZES = (5, 10, 20)  # photos per class to teach with
CARTONS = ("juice_carton", "milk_carton", "yoghurt")
FLIPPED = 0.1  # share of labels


def load(data: Path, weights: str, cache: Path) -> tuple[dict[str, Embedded], dict[str, Embedded]]:
    """Return the sets to teach, and for each set photos of things that it does not have."""
    grocery = embed(data / "train/grocery.tar", "grocery/", MOST, weights, cache)
    pacs = embed(data / "photos-train.tar", "pacs/", 60, weights, cache)
    background = embed(data / "photos-train.tar", "background_google/", 120, weights, cache)
    imagenette = embed(data / "train/imagenette.tar", "imagenette/", 12, weights, cache)
    is_carton = np.isin(grocery.classes, CARTONS)
    other = background.joined(imagenette)
    return (
        {"grocery": grocery, "cartons": grocery.of(is_carton), "pacs": pacs},
        {"grocery": other.joined(pacs), "cartons": grocery.of(~is_carton), "pacs": other.joined(grocery)},
    )


def measure(photos: Embedded, unknown: Embedded, size: int, draws: int, compared: int) -> dict[str, object]:
    """Return what is true of heads taught with ``size`` photos per class, over random draws."""
    rows: list[dict[str, float | None]] = []
    for seed in range(draws):
        random = np.random.default_rng(seed)
        drawn = draw(photos, size, random)
        start_s = time.process_time()
        fitted = teach(drawn.taught)
        cpu_s = time.process_time() - start_s
        true, measured = accuracy(fitted, drawn.other), fitted.report.accuracy
        kept, refused = known_and_unknown(fitted, drawn.other, unknown)
        rows.append(
            {
                "true": true,
                "reported": measured.accuracy if measured else None,
                "width": measured.high - measured.low if measured else None,
                "held": bool(measured and measured.low <= true <= measured.high),
                "kept": kept,
                "refused": refused,
                "cpu_s": cpu_s,
                "ahead": true - reference_accuracy(drawn.taught, drawn.other) if seed < compared else None,
            }
        )
    found: dict[str, object] = {
        name: round(mean(value for row in rows if (value := row[name]) is not None), 4) for name in rows[0]
    }
    return found | {"draws": draws, "compared": compared, "held": sum(bool(row["held"]) for row in rows)}


def label_errors(photos: Embedded, size: int, draws: int) -> dict[str, object]:
    """Return how many flipped labels are named, and how many named ones were flipped."""
    flipped = named = both = 0
    for seed in range(draws):
        random = np.random.default_rng(seed)
        taught = draw(photos, size, random).taught
        labels, rows = flip(taught.classes, FLIPPED, random)
        found = {int(error.example_id) for error in teach(taught, labels).report.label_errors}
        flipped, named, both = flipped + len(rows), named + len(found), both + len(found & set(rows.tolist()))
    return {"draws": draws, "flipped": flipped, "found": round(both / flipped, 3), "right": round(both / named, 3)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.teach", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA", type=Path)
    parser.add_argument("--weights", default="demo", help="backbone: a name or a .safetensors file")
    parser.add_argument("--cache", type=Path, default=Path("build/teach"), help="folder for embeddings")
    parser.add_argument("--sets", nargs="+", default=["cartons", "pacs", "grocery"])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--compared", type=int, default=5, help="draws that LogisticRegressionCV is fitted on too")
    parser.add_argument("--flips", type=int, default=20, help="draws with flipped labels")
    options = parser.parse_args()
    taught, unknown = load(options.data, options.weights, options.cache)
    for name in options.sets:
        for size in SIZES:
            found = measure(taught[name], unknown[name], size, options.draws, options.compared)
            print(json.dumps({"set": name, "photos_per_class": size, **found}), flush=True)
        flips = label_errors(taught[name], SIZES[-1], options.flips)
        print(json.dumps({"set": name, "photos_per_class": SIZES[-1], "flips": flips}), flush=True)


if __name__ == "__main__":
    main()
