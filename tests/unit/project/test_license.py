"""The project has one license, and everything that is distributed names it."""

from __future__ import annotations

import hashlib
import tomllib
from fnmatch import fnmatch

from serve_app.config import WeightsConfig
from serve_app.inference.card import DEMO, load_card
from tests.support.paths import ROOT

# sha256 of https://www.apache.org/licenses/LICENSE-2.0.txt
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_license_is_the_official_text() -> None:
    """LICENSE is the copyright line, then Apache's text byte for byte."""
    copyright_line, text = (ROOT / "LICENSE").read_bytes().split(b"\n", 1)
    assert copyright_line == b"Copyright 2026 The serve-app authors"
    assert hashlib.sha256(text).hexdigest() == APACHE_2_SHA256


def test_the_package_names_its_license() -> None:
    """Package indexes show the license, and the wheel contains its text."""
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    assert PYPROJECT["project"]["license-files"] == ["LICENSE"]


def test_the_demo_weights_come_with_their_terms() -> None:
    """The terms name every source of the weights, and are installed beside them with the backbone's license."""
    card = load_card(WeightsConfig(source="demo"))
    terms, license_file = DEMO.parent / "TERMS.md", DEMO.parent / "LICENSE-BACKBONE.txt"
    named = terms.read_text().lower().replace(" ", "").replace("-", "").replace(".", "")
    for source in card.training["sources"]:
        assert source.replace("-", "") in named, source
    assert license_file.read_text().startswith("The MIT License (MIT)")
    assert any("MIT" in text for text in card.licenses.values())
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["serve_app"]
    for path in (DEMO, terms, license_file, ROOT / "serve_app" / "training" / "recipes" / "demo-2.yaml"):
        assert any(fnmatch(str(path.relative_to(ROOT / "serve_app")), pattern) for pattern in patterns), path
