"""The project has one license, and everything that is distributed names it."""

from __future__ import annotations

import hashlib
import tomllib
from fnmatch import fnmatch

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
    """License and training data of the weights are installed beside them."""
    terms = ROOT / "serve_app" / "models" / "demo" / "LICENSE-DATA.md"
    assert (terms.parent / "model.safetensors").exists()
    text = terms.read_text()
    assert "Apache License 2.0" in text
    assert "CIFAR-10" in text
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["serve_app"]
    assert any(fnmatch(str(terms.relative_to(ROOT / "serve_app")), pattern) for pattern in patterns)
