"""Where the project's own files are, in a checkout, in an image and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CONFIGS = PACKAGE / "configs"  # a link to the configs/ of the checkout; a wheel contains copies
PAGE = PACKAGE.parent / "frontend" / "app.py"
IS_CHECKOUT = (PACKAGE.parent / "configs").is_dir()  # or an image, which has the folders of a checkout
# Relative folders of a config, such as `jobs.folder`, are below ROOT. Without a checkout that is the current folder:
# a wheel's own folder belongs to pip.
ROOT = PACKAGE.parent if IS_CHECKOUT else Path.cwd()
