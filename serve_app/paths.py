"""Where the project's own files are, in a checkout, in an image and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent  # of a checkout; for a wheel the folder into which pip installs packages
IS_CHECKOUT = (ROOT / "pyproject.toml").is_file()
CONFIGS = PACKAGE / "configs"  # a link to configs/ of the checkout; a wheel contains copies
PAGE = ROOT / "frontend" / "app.py"
