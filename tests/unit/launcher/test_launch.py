"""The start: sentences that a user reads when the machine is not ready."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from serve_app.exposure import PUBLISHED_ON
from serve_app.launcher import local
from serve_app.launcher.environment import HAPROXY_CONFIG
from serve_app.launcher.haproxy import error_file, has_loopback_6
from serve_app.launcher.local import check_node_address, check_ports, haproxy_failure, read_config
from serve_app.launcher.processes import StartError, wait_until_ok
from serve_app.release.serve_config import APP, INGRESS, MODEL, ConfigError
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


def test_an_open_port_without_keys_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Ray starts; `--open` or the published address of a container say that it is meant so."""
    started: list[str] = []

    class StartedError(Exception):
        pass

    def serving(_config: object, _port: int, host: str) -> None:
        started.append(host)
        raise StartedError

    monkeypatch.setattr(local, "serving", serving)
    file = ROOT / "configs" / "local.yaml"
    with pytest.raises(SystemExit, match=r"error: classify\.Ingress\.user_config: keys: .*0\.0\.0\.0.*--open"):
        local.main(file, "demo", "0.0.0.0", 0, None)
    assert started == []
    for host, is_open in (("127.0.0.1", False), ("0.0.0.0", True)):
        with pytest.raises(StartedError):
            local.main(file, "demo", host, 0, None, is_open)
    monkeypatch.setenv(PUBLISHED_ON, "127.0.0.1")
    with pytest.raises(StartedError):
        local.main(file, "demo", "0.0.0.0", 0, None)
    assert started == ["127.0.0.1", "0.0.0.0", "0.0.0.0"]


def test_open_applies_to_every_ingress() -> None:
    config = {
        "applications": [
            {"import_path": APP},
            {"import_path": INGRESS, "deployments": [{"name": "Ingress", "user_config": {"top_k": 3}}]},
            {"import_path": MODEL, "deployments": [{"name": "Classifier"}]},
        ]
    }
    local.open_to_all(config)
    assert [app.get("deployments") for app in config["applications"]] == [
        [{"name": "Ingress", "user_config": {"open": True}}],
        [{"name": "Ingress", "user_config": {"top_k": 3, "open": True}}],
        [{"name": "Classifier"}],
    ]


@pytest.mark.skipif(not has_loopback_6(), reason="this machine has no ::1")
def test_a_port_that_is_busy_on_the_other_loopback_is_named() -> None:
    """HAProxy listens on both."""
    with socket.socket(socket.AF_INET6) as busy:
        busy.bind(("::1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(StartError, match=rf"port {port} cannot be used .*make run PORT="):
            check_ports(PORT=port)


class NoIpv6(socket.socket):
    """A socket of a Linux without IPv6."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        super().__init__(family)


class NoLoopback6(socket.socket):
    """A socket of a Linux without the address ::1."""

    def bind(self, address: tuple[str, int]) -> None:  # type: ignore[override] # takes any address
        if self.family == socket.AF_INET6:
            raise OSError(99, "Cannot assign requested address")
        super().bind(address)


@pytest.mark.parametrize("kind", [NoIpv6, NoLoopback6])
def test_a_machine_without_ipv6_starts(monkeypatch: pytest.MonkeyPatch, kind: type[socket.socket]) -> None:
    monkeypatch.setattr(socket, "socket", kind)
    assert not has_loopback_6()
    check_ports(PORT=0)


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


def test_make_prints_its_targets() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target}" in shown for target in ("run", "test", "check", "fmt"))
