"""The start: sentences that a user reads when the machine is not ready."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

import setup_venv
from serve_app.launcher.environment import HAPROXY_CONFIG
from serve_app.launcher.haproxy import error_file
from serve_app.launcher.local import check_node_address, check_ports, haproxy_failure, read_config
from serve_app.launcher.processes import StartError, wait_until_ok
from serve_app.release.serve_config import ConfigError
from tests.support.paths import ROOT


def test_a_busy_port_is_named() -> None:
    """The sentence names the port and the variable that chooses another."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(StartError, match=rf"port {port} cannot be used .*make run PORT=") as caught:
            check_ports(PORT=port, PAGE_PORT=0)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_config_is_named(tmp_path: Path) -> None:
    """Empty, without applications, not YAML or missing: the sentence names the file."""
    for text in ("", "applications: []", "{"):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"c\.yaml cannot be read as a Serve config"):
            read_config(tmp_path / "c.yaml", 8000, "demo")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_config(tmp_path / "none.yaml", 8000, "demo")


def test_the_command_line_decides_port_and_weights() -> None:
    """Whatever the config file says."""
    config = read_config(ROOT / "configs" / "local.yaml", 1234, "imagenet")
    assert config["http_options"]["port"] == 1234
    assert config["applications"][0]["args"]["weights"] == "imagenet"


@pytest.mark.parametrize("address", ["192.168.0.7", "10.1.2.3"])
def test_a_ray_on_the_network_stops_the_start(address: str) -> None:
    """After a Ray upgrade look in ray/_private/services.py: RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 had no effect."""
    check_node_address("127.0.0.1")
    with pytest.raises(StartError, match=rf"Ray listens on {address}, open to the network"):
        check_node_address(address)


def test_waiting_ends_with_the_reason_of_a_failure() -> None:
    """Such as HAProxy's, long before the time is over."""
    with pytest.raises(StartError, match=r"^HAProxy is not started: an anchor changed$"):
        wait_until_ok("http://127.0.0.1:9", 600, "the API", lambda: "HAProxy is not started: an anchor changed")


def test_haproxys_reason_is_read_from_the_nodes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ray/serve/_private/haproxy.py puts the configuration below the folder that we name."""
    monkeypatch.setenv(HAPROXY_CONFIG, str(tmp_path / "haproxy.cfg"))
    assert haproxy_failure() is None
    (tmp_path / "node").mkdir()
    error_file(tmp_path / "node" / "haproxy.cfg").write_text("an anchor changed")
    assert haproxy_failure() == "an anchor changed"


def test_waiting_ends_in_time() -> None:
    with pytest.raises(StartError, match="the API did not answer within 0 s"):
        wait_until_ok("http://127.0.0.1:9", 0, "the API", lambda: None)


def test_an_old_python_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup_venv, "STAMP", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match=r"Python 3\.11 or newer is needed, .* is 3\.9"):
        setup_venv.main()


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.delenv("WHEEL_INDEX", raising=False)
    monkeypatch.setattr(setup_venv, "STAMP", str(tmp_path / "none"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**10, 9 * 10**9, 10**9))
    with pytest.raises(SystemExit, match=r"1\.0 GB of disk are free, the packages need"):
        setup_venv.main()


def test_a_failed_install_is_one_sentence() -> None:
    with pytest.raises(SystemExit, match="error: that did not work"):
        setup_venv.run([sys.executable, "-c", "raise SystemExit(1)"], "that did not work")


def test_set_up_twice_does_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second start takes no time: the stamp says that everything is there."""
    stamp = tmp_path / "installed"
    stamp.write_text(setup_venv.fingerprint())
    monkeypatch.setattr(setup_venv, "STAMP", str(stamp))
    monkeypatch.setattr(setup_venv, "run", lambda *_: pytest.fail("must not install"))
    setup_venv.main()


def test_setup_is_readable_by_old_pythons() -> None:
    """The file that says that Python is too old must not need a new one."""
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import ast, sys; ast.parse(open(sys.argv[1]).read(), feature_version=(3, 5))",
            str(ROOT / "setup_venv.py"),
        ],
        check=True,
    )


def test_make_prints_its_targets() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target}" in shown for target in ("run", "test", "check", "fmt"))
