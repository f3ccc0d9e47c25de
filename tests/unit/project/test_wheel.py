"""The wheel, unpacked into an empty folder, without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("serve_app", "frontend")


def tracked(*folders: str) -> list[str]:
    """Return the files of folders of the checkout that git tracks."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", *folders]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [name for name in names.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel that setuptools makes of the tracked files."""
    source, built, unpacked = (tmp_path_factory.mktemp(name) for name in ("source", "built", "unpacked"))
    for name in [*tracked(*PACKAGES, "configs"), "pyproject.toml", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (source / name).symlink_to(os.readlink(ROOT / name))
        else:
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(source)], check=True)
    (wheel,) = built.iterdir()
    zipfile.ZipFile(wheel).extractall(unpacked)
    return unpacked


def run_in_empty_folder(installed: Path, folder: Path, *command: str) -> str:
    """Run Python with the unpacked wheel and without the checkout; return what it printed."""
    program = [sys.executable, "-P", *command]
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "400"}  # a path of --help on one line
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_file_of_its_packages(installed: Path) -> None:
    """Code, the page's settings and pictures, the demo model and the configs; no tests, no tools."""
    files = {name for name in tracked(*PACKAGES) if (ROOT / name).is_file()}
    files |= {f"serve_app/{name}" for name in tracked("configs")}
    files -= {name for name in files if name.endswith("/README.md")}  # explains code to readers of the code
    found = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {name for name in found if ".dist-info/" not in name} == files
    assert "frontend/.streamlit/config.toml" in files
    assert "serve_app/configs/local.yaml" in files
    assert "serve_app/models/demo/model.safetensors" in files


def test_what_the_command_reads_is_in_the_package(installed: Path, tmp_path: Path) -> None:
    """Config, Ray's environment, page and demo model, from an empty folder."""
    program = (
        "from serve_app.cli.run import run; from serve_app.inference.card import DEMO\n"
        "from serve_app.launcher.environment import read_ray_env; from serve_app.launcher.local import read_config\n"
        "from serve_app.paths import CONFIGS, IS_CHECKOUT, PAGE\n"
        "assert read_config(CONFIGS / 'local.yaml', 8000, 'demo')['applications']\n"
        "assert read_ray_env()\n"
        "assert not IS_CHECKOUT\n"
        "for path in (CONFIGS, PAGE, DEMO): print(path)\n"
    )
    paths = run_in_empty_folder(installed, tmp_path, "-c", program).split()
    assert [Path(path).relative_to(installed).parts[0] for path in paths] == ["serve_app", "frontend", "serve_app"]
    assert all(Path(path).exists() for path in paths)
    assert list(tmp_path.iterdir()) == []


def test_the_page_finds_its_settings_from_any_folder(installed: Path, tmp_path: Path) -> None:
    """Streamlit reads .streamlit beside the script; the folder of the user has none."""
    program = (
        "from streamlit import config; from serve_app.paths import PAGE\n"
        "config._main_script_path = str(PAGE)  # as `streamlit run` sets it\n"
        "print(config.get_config_options(force_reparse=True)['client.showErrorDetails'].value)\n"
    )
    assert run_in_empty_folder(installed, tmp_path, "-c", program).strip() == "none"


def test_the_command_describes_itself(installed: Path, tmp_path: Path) -> None:
    """`serve-app run --help` names the config of the package."""
    printed = run_in_empty_folder(installed, tmp_path, "-m", "serve_app", "run", "--help")
    assert str(installed / "serve_app" / "configs" / "local.yaml") in printed
