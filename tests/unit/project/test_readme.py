"""The README: its links, its commands, and the sizes that it states; tests/service/test_readme.py runs curl."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

import setup_venv
from serve_app.cli.main import app
from tests.support.paths import ROOT
from tests.support.readme import README, commands

MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_linked_files_exist() -> None:
    """Every relative link and image of the README and the documentation points to a file."""
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text()
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_command_is_of_a_kind_that_is_tested() -> None:
    """The tests below, and those that run curl, look at all of them."""
    kinds = {"make", "serve-app", "pip", "curl"}
    assert {kind for kind in kinds if commands(kind)} == kinds
    shown = re.findall(r"^\$ (?:\w+=\S* )*(?:\S*/)?(\S+)", README, re.M)
    assert set(shown) <= kinds


@pytest.mark.parametrize("command", commands("make"))
def test_make_commands_work(command: str) -> None:
    """Target, variables and extras exist."""
    target, *variables = shlex.split(command)[1:]
    assert f"\n{target}:" in MAKEFILE
    for name, value in (variable.split("=", 1) for variable in variables):
        assert f"$({name})" in MAKEFILE, name
        if name == "EXTRAS":
            assert set(value.split(",")) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("command", commands("serve-app"))
def test_commands_of_serve_app_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their arguments and options, as the command line reads them; words in capitals are folders."""
    for folder in re.findall(r"\b[A-Z]+\b", command):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    group = typer.main.get_command(app)
    name, *arguments = shlex.split(command)[1:]
    if name != "--help":
        group.commands[name].make_context(name, arguments).close()  # type: ignore[attr-defined] # a group of commands


@pytest.mark.parametrize("command", commands("pip"))
def test_what_pip_installs_exists(command: str) -> None:
    """Project, extras and constraints are there, and the index is the one that setup_venv.py asks."""
    words = dict(re.findall(r"(--\S+) (\S+)", command))
    assert (ROOT / words.get("--constraint", "constraints.txt")).is_file()
    assert words.get("--extra-index-url", setup_venv.CPU_INDEX) == setup_venv.CPU_INDEX
    folder, _, extras = shlex.split(command)[-1].rstrip("]").partition("[")
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    assert set(filter(None, extras.split(","))) <= set(project.get("optional-dependencies", {}))


def test_sizes_are_those_that_the_installation_announces(capsys: pytest.CaptureFixture[str]) -> None:
    """The first lines of `make run`, and the table under them."""
    nothing = {"files": None, "choice": None, "index": None, "extras": []}
    setup_venv.announce(nothing, setup_venv.CPU_INDEX, [], "this machine has no NVIDIA driver")
    what, why, otherwise = capsys.readouterr().out.splitlines()
    assert what in README
    assert why in README
    assert otherwise.partition(" those of ")[0] in README
    table = {
        name: (fetch, disk)
        for name, _, fetch, disk in re.findall(r"^\| (.*) \| (.*) \| (.*) \| (.*) \|$", README, re.M)
    }
    for name, parts in {
        "CPU builds of torch": (setup_venv.PACKAGES_MB, setup_venv.CPU_TORCH_MB),
        "CUDA builds of torch": (setup_venv.PACKAGES_MB, setup_venv.CUDA_TORCH_MB),
        "what the tests need, too": (setup_venv.EXTRAS_MB["test"],),
    }.items():
        fetch_mb, disk_mb = (sum(part[column] for part in parts) for column in (0, 1))
        assert table[name] == (f"{fetch_mb} MB", f"{disk_mb / 1000:.1f} GB")


def test_nothing_is_left_to_fill_in() -> None:
    """The README has no HTML comments, which mark unfinished parts."""
    assert "<!--" not in README
