"""Where the project's own files are (in a checkout, an image or a wheel), and where the service keeps its data."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent  # of a checkout; for a wheel the folder into which pip installs packages
IS_CHECKOUT = (ROOT / "pyproject.toml").is_file()
CONFIGS = PACKAGE / "configs"  # a link to configs/ of the checkout; a wheel contains copies
PAGE = ROOT / "frontend" / "app.py"
DATA_VARIABLE = "SERVE_APP_DATA"
CACHE_VARIABLE = "SERVE_APP_CACHE"


def data_folder() -> Path:
    """Return the folder below which the service keeps jobs, prediction log and votes.

    The environment's SERVE_APP_DATA names it. Without that it is ``.data`` of a checkout, and for an installed package
    the user's folder for such data, ``~/.local/state/serve-app`` (XDG Base Directory Specification).
    """
    if chosen := os.environ.get(DATA_VARIABLE):
        return Path(chosen).absolute()
    if IS_CHECKOUT:
        return ROOT / ".data"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "serve-app"


def data_path(folder: str) -> str:
    """Return a folder of the settings as an absolute path, or unchanged if it is a URI such as ``s3://…``.

    A relative path is below ``data_folder``.
    """
    return folder if "://" in folder else str(data_folder() / folder)


def cache_folder() -> Path:
    """Return the folder for what can be measured or computed again.

    The environment's SERVE_APP_CACHE names it. Without that it is the user's cache, ``~/.cache/serve-app`` (XDG Base
    Directory Specification).
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "serve-app"


def python_path() -> str:
    """Return PYTHONPATH for programs of this package: its own folder, then what this process has."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def torch_checkpoints() -> Path:
    """Return the folder in which torch.hub keeps downloaded weights; TORCH_HOME in the environment moves it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser() / "hub" / "checkpoints"
