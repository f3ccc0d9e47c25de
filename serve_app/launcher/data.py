"""What `serve-app run` keeps on disk: prediction log and votes, where, and how the page finds them."""

from __future__ import annotations

from typing import Any

from serve_app.config import IngressConfig
from serve_app.paths import DATA_VARIABLE, data_folder, data_path
from serve_app.release import serve_config
from serve_app.validation import parse

# key of the Ingress's user_config -> variable of the page's environment (frontend/components/log_notices.py)
PAGE_VARIABLES = {"prediction_log": "PREDICTION_LOG", "feedback": "FEEDBACK_FOLDER"}


def switch_off(config: dict[str, Any]) -> None:
    """Keep neither prediction log nor votes, whatever the config says."""
    for app in config["applications"]:
        for deployment in app.get("deployments", ()):
            if deployment["name"] == "Ingress":
                off = dict.fromkeys(PAGE_VARIABLES)
                deployment["user_config"] = {**(deployment.get("user_config") or {}), **off}


def stored(config: dict[str, Any]) -> IngressConfig:
    """Return the settings of the first ingress, which say what is stored."""
    ingresses = [app for app in config["applications"] if app.get("import_path") != serve_config.MODEL]
    return parse(IngressConfig, serve_config.user_config(ingresses[0], "Ingress") if ingresses else {})


def environment(config: dict[str, Any]) -> dict[str, str]:
    """Return the variables that name the data folder to Ray's processes, and the log and the votes to the page."""
    settings, variables = stored(config), {DATA_VARIABLE: str(data_folder())}
    for key, variable in PAGE_VARIABLES.items():
        if (kept := getattr(settings, key)) and "://" not in kept.folder:
            variables[variable] = data_path(kept.folder)
    return variables


def create_folder() -> None:
    """Create the data folder for this user alone; one that cannot be created is the log's to report, and no failure."""
    try:
        data_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return


def describe(config: dict[str, Any]) -> str:
    """Return a line for the terminal: what is stored, where, for how long, and how to switch it off."""
    settings, kept = stored(config), list[str]()
    if log := settings.prediction_log:
        kept.append(f"a row per image, no photos ({log.keep_days} days, {log.max_bytes / 2**20:.0f} MiB)")
    if votes := settings.feedback:
        days = f"{votes.keep_days:g} days" if votes.keep_days else "kept"
        kept.append(f"votes{' and their photos' if votes.keep_images else ''} ({days})")
    if not kept:
        return "nothing: no prediction log, no votes"
    folders = sorted({data_path(each.folder) for each in (settings.prediction_log, settings.feedback) if each})
    return f"{' and '.join(folders)}: {', '.join(kept)}; off: --no-log"
