"""setup_venv.py: which torch it takes, what it says before, what a second call adds, and how it shows progress."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

import setup_venv
from tests.support.package_index import TAG, QuietHandler, http_server, package_index, write_index
from tests.support.paths import ROOT

Command = list[str]


@pytest.fixture(scope="module")
def cpu_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stand-in for PyTorch's index of CPU builds."""
    folder = tmp_path_factory.mktemp("cpu")
    write_index(folder, {package: setup_venv.pinned(package) + "+cpu" for package in setup_venv.TORCH})
    with package_index(folder) as address:
        yield address


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Command]:
    """An empty .venv, a machine without driver whose index refuses, and a record of the commands that would run."""
    recorded: list[Command] = []
    monkeypatch.setattr(setup_venv, "VENV", str(tmp_path))
    monkeypatch.setattr(setup_venv, "run", lambda command, _failure: recorded.append(command))
    monkeypatch.setattr(setup_venv, "install", lambda command, _expected_mb: recorded.append(command))
    monkeypatch.setattr(setup_venv, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(setup_venv, "CPU_INDEX", "http://127.0.0.1:9")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**12, 0, 10**12))
    monkeypatch.delenv("WHEEL_INDEX", raising=False)
    return recorded


def pip_install(command: Command) -> Command:
    """What `pip install` gets after its own options: requirements and indexes."""
    return command[command.index("--editable") :]


def test_without_a_driver_the_cpu_builds_are_taken(
    commands: list[Command], monkeypatch: pytest.MonkeyPatch, cpu_index: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says first what, how much, why, and how to choose otherwise."""
    monkeypatch.setattr(setup_venv, "CPU_INDEX", cpu_index)
    setup_venv.main([])
    pin = f"torch=={setup_venv.pinned('torch')}+cpu"
    assert pip_install(commands[-1]) == ["--editable", str(ROOT), "--extra-index-url", cpu_index, pin]
    what, why, otherwise = capsys.readouterr().out.splitlines()[:3]
    assert what == "· installing into .venv: API and page, torch (CPU builds): about 610 MB to fetch, 2.2 GB on disk"
    assert why == "· torch: CPU builds, because this machine has no NVIDIA driver"
    assert "WHEEL_INDEX=none takes the CUDA builds" in otherwise


def test_pip_prefers_the_cpu_builds(
    commands: list[Command], monkeypatch: pytest.MonkeyPatch, cpu_index: str, tmp_path: Path
) -> None:
    """With real indexes and a real pip: the pins of constraints.txt accept the CPU builds."""
    monkeypatch.setattr(setup_venv, "CPU_INDEX", cpu_index)
    setup_venv.main([])
    write_index(tmp_path / "default", {package: setup_venv.pinned(package) for package in setup_venv.TORCH})
    arguments = [*pip_install(commands[-1])[2:], "torchvision"]  # which is one of the project's own requirements
    report = tmp_path / "report.json"
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--report", str(report)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    with package_index(tmp_path / "default") as default:
        environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": default, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), *arguments], env=environment, check=True)
    found = json.loads(report.read_text())["install"]
    assert [package["download_info"]["url"].startswith(cpu_index) for package in found] == [True, True]
    assert all(package["metadata"]["version"].endswith("+cpu") for package in found)


def test_with_a_driver_the_cuda_builds_are_taken(
    commands: list[Command], monkeypatch: pytest.MonkeyPatch, cpu_index: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although the index of CPU builds would answer."""
    monkeypatch.setattr(setup_venv, "CPU_INDEX", cpu_index)
    monkeypatch.setattr(setup_venv, "has_nvidia_driver", lambda: True)
    setup_venv.main([])
    assert pip_install(commands[-1]) == ["--editable", str(ROOT)]
    assert "torch: CUDA builds, because this machine has an NVIDIA driver" in capsys.readouterr().out


def test_an_index_that_refuses_is_not_used(commands: list[Command], capsys: pytest.CaptureFixture[str]) -> None:
    """Pip's own index then decides, and the announced size is that of the CUDA builds."""
    setup_venv.main([])
    assert pip_install(commands[-1]) == ["--editable", str(ROOT)]
    printed = capsys.readouterr().out
    assert "torch (CUDA builds): about 3420 MB to fetch, 7.1 GB on disk" in printed
    assert "http://127.0.0.1:9 did not offer the CPU builds of torch" in printed


class DrippingHandler(QuietHandler):
    """Answers one byte at a time, for ever: no single read times out."""

    def do_GET(self) -> None:  # noqa: N802 # the name that http.server calls
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not DRIPPING_ENDED.wait(0.1):
                self.wfile.write(b"<")


DRIPPING_ENDED = threading.Event()


def test_an_index_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is bounded in all, not per read."""
    monkeypatch.setattr(setup_venv, "CPU_INDEX_TIMEOUT_S", 0.5)
    with http_server(DrippingHandler) as index:
        started = time.monotonic()
        assert not setup_venv.has_cpu_builds(index)
        assert time.monotonic() - started < 30
        DRIPPING_ENDED.set()


def test_the_timeout_is_three_seconds() -> None:
    """As README.md says."""
    assert setup_venv.CPU_INDEX_TIMEOUT_S == 3


@pytest.mark.parametrize("other", ["torch-2.0.0+cpu-{0}", "torch-{1}-{0}", "torch-{1}+cpu-cp27-cp27-linux_vax"])
def test_an_index_without_our_torch_is_not_used(tmp_path: Path, other: str) -> None:
    """Another version, another build, another Python or machine: pip would not find what it is told to take."""
    (tmp_path / "torch").mkdir()
    name = other.format(TAG, setup_venv.pinned("torch"))
    (tmp_path / "torch" / "index.html").write_text(f'<a href="{name}.whl">{name}.whl</a>')
    with package_index(tmp_path) as index:
        assert not setup_venv.has_cpu_builds(index)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("none", []), ("http://127.0.0.1:8/whl/cu126", ["--extra-index-url", "http://127.0.0.1:8/whl/cu126"])],
)
def test_wheel_index_decides(
    commands: list[Command], monkeypatch: pytest.MonkeyPatch, cpu_index: str, value: str, expected: list[str]
) -> None:
    """`none` takes what pip's index has; an address takes what is there, with a driver or without."""
    monkeypatch.setattr(setup_venv, "CPU_INDEX", cpu_index)
    monkeypatch.setenv("WHEEL_INDEX", value)
    setup_venv.main([])
    assert pip_install(commands[-1])[2:] == expected


def test_a_driver_is_found_by_its_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`nvidia-smi` comes with the driver."""
    monkeypatch.setattr(setup_venv, "NVIDIA_DRIVER", str(tmp_path / "version"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not setup_venv.has_nvidia_driver()
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert setup_venv.has_nvidia_driver()


def test_a_second_target_adds_only_its_own(commands: list[Command], capsys: pytest.CaptureFixture[str]) -> None:
    """`make test` after `make run` keeps torch, and `make run` after that does nothing at all."""
    setup_venv.main([])
    commands.clear()
    capsys.readouterr()
    setup_venv.main(["test"])
    assert pip_install(commands[-1]) == ["--editable", f"{ROOT}[test]"]
    assert not [command for command in commands if "uninstall" in command]
    assert capsys.readouterr().out.startswith("· installing into .venv: extra `test`: about 190 MB to fetch")
    commands.clear()
    for extras in ([], ["test"]):
        setup_venv.main(extras)
    assert commands == []
    assert capsys.readouterr().out == ""


def test_the_choice_of_torch_lasts(commands: list[Command], monkeypatch: pytest.MonkeyPatch, cpu_index: str) -> None:
    """An index that stops answering does not bring 3 GB of CUDA with the next extra."""
    monkeypatch.setattr(setup_venv, "CPU_INDEX", cpu_index)
    setup_venv.main([])
    monkeypatch.setattr(setup_venv, "has_cpu_builds", lambda _index: pytest.fail("must not ask again"))
    setup_venv.main(["test"])
    assert pip_install(commands[-1])[2] == "--extra-index-url"


def test_another_choice_replaces_torch(
    commands: list[Command], monkeypatch: pytest.MonkeyPatch, cpu_index: str
) -> None:
    """Pip takes torch 2.0+cpu for torch 2.0: it has to go first. The extras stay."""
    monkeypatch.setattr(setup_venv, "CPU_INDEX", cpu_index)
    setup_venv.main(["train"])
    commands.clear()
    monkeypatch.setenv("WHEEL_INDEX", "none")
    setup_venv.main([])
    (removed,) = [command for command in commands if "uninstall" in command]
    assert removed[-2:] == list(setup_venv.TORCH)
    assert pip_install(commands[-1]) == ["--editable", f"{ROOT}[train]"]


def test_changed_pins_are_installed(commands: list[Command], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a `git pull` that changed constraints.txt."""
    setup_venv.main([])
    commands.clear()
    monkeypatch.setattr(setup_venv, "fingerprint", lambda: "another")
    setup_venv.main([])
    assert pip_install(commands[-1]) == ["--editable", str(ROOT)]


def test_a_failed_installation_is_repeated(commands: list[Command], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a success is remembered."""
    monkeypatch.setattr(setup_venv, "install", lambda *_: sys.exit("error"))
    with pytest.raises(SystemExit):
        setup_venv.main([])
    assert setup_venv.read_stamp()["files"] is None


def test_an_old_python_is_named(commands: list[Command], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match=r"Python 3\.11 or newer is needed, .* is 3\.9"):
        setup_venv.main([])


def test_a_full_disk_is_named(commands: list[Command], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**10, 9 * 10**9, 10**9))
    with pytest.raises(SystemExit, match=r"1\.0 GB of disk are free, the packages need"):
        setup_venv.main([])


def test_progress_says_what_is_fetched_and_how_much() -> None:
    """From the lines of a real `pip install --progress-bar raw`."""
    progress = setup_venv.Progress(610)
    progress.read("Collecting import-linter==2.17 (from serve-app)\n")
    assert progress.text() == "collecting import-linter; 0 of about 610 MB in all"
    progress.read("  Downloading https://example.org/cpu/torch-2.14.1%2Bcpu-cp311-cp311-linux.whl (200.0 MB)\n")
    progress.read("Progress 50000000 of 200000000\n")
    assert progress.text() == "downloading torch, 50 of 200 MB; 50 of about 610 MB in all"
    progress.read("Progress 200000000 of 200000000\n")
    progress.read("  Downloading numpy-2.4.6-cp311-cp311-linux.whl (16.0 MB)\n")
    progress.read("Progress 8000000 of 16000000\n")
    assert progress.text() == "downloading numpy, 8 of 16 MB; 208 of about 610 MB in all"


def test_progress_counts_what_is_unpacked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pip is silent for minutes then."""
    monkeypatch.setattr(setup_venv, "VENV", str(tmp_path))
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    (packages / "pip-26.2.1.dist-info").mkdir(parents=True)
    progress = setup_venv.Progress(0)
    progress.read("Installing collected packages: six, numpy, torch\n")
    assert progress.text() == "unpacking: 0 of 3 packages"
    (packages / "six-1.17.0.dist-info").mkdir()
    assert progress.text() == "unpacking: 1 of 3 packages"


def test_a_failed_install_shows_pips_last_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And names the file with all of them."""
    monkeypatch.setattr(setup_venv, "VENV", str(tmp_path))
    program = "print('ERROR: No matching distribution'); raise SystemExit(1)"
    with pytest.raises(SystemExit, match=r"error: the packages cannot be installed: .*install\.log"):
        setup_venv.install([sys.executable, "-c", program], 0)
    assert "ERROR: No matching distribution" in capsys.readouterr().out
    assert "No matching" in (tmp_path / "install.log").read_text()


def test_a_failed_command_is_one_sentence() -> None:
    with pytest.raises(SystemExit, match="error: that did not work"):
        setup_venv.run([sys.executable, "-c", "raise SystemExit(1)"], "that did not work")


def test_setup_is_readable_by_old_pythons() -> None:
    """The file that says that Python is too old must not need a new one."""
    program = "import ast, sys; ast.parse(open(sys.argv[1]).read(), feature_version=(3, 5))"
    subprocess.run([sys.executable, "-c", program, str(ROOT / "setup_venv.py")], check=True)


@pytest.mark.parametrize(
    ("target", "extras"), [("run", ""), ("deploy", ""), ("test", "test"), ("check", "test"), ("bench", "bench,test")]
)
def test_each_target_installs_its_own(target: str, extras: str) -> None:
    """`make run` needs no test tools."""
    command = ["make", "--dry-run", target]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "EXTRAS")
    }
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"setup_venv\.py ?(.*)", printed) == [extras]
