"""What stands in HAProxy's place: it completes what Ray writes, and changes nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ray.serve._private import haproxy_templates

from serve_app.haproxy import EDITS, on_this_machine, write_program

WRITTEN = """defaults
    option abortonclose
    option splice-request
frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
listen stats
  bind *:8404
  bind *:84040
server one 127.0.0.1:8000
"""
COMPLETED = WRITTEN.replace(
    "    option abortonclose\n",
    "    option abortonclose\n    option http-buffer-request\n    timeout http-request 30s\n",
)


def run(folder: Path, edits: str = "") -> str:
    """Twice, as when Ray reloads; the arguments reach HAProxy as they were."""
    program, config = folder / "haproxy", folder / "haproxy.cfg"
    write_program(program, "/bin/echo")
    config.write_text(WRITTEN)
    environment = {**os.environ, EDITS: edits}
    for _ in range(2):
        command = [program, "-db", "-f", config]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == f"-db -f {config}\n"
    return config.read_text()


def test_requests_are_held_whole(tmp_path: Path) -> None:
    assert run(tmp_path) == COMPLETED


@pytest.mark.parametrize(("host", "public"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "*")])
def test_only_the_api_listens_where_it_was_asked_to(tmp_path: Path, host: str, public: str) -> None:
    assert run(tmp_path, on_this_machine(host, 8000, ["8404", "9101"])) == COMPLETED.replace(
        ":9101", "127.0.0.1:9101"
    ).replace("*:8404\n", "127.0.0.1:8404\n").replace("bind 127.0.0.1:8000", f"bind {public}:8000")


def test_ray_still_writes_the_line_that_is_looked_for() -> None:
    template = Path(haproxy_templates.__file__).read_text()
    assert template.count("\n    option abortonclose\n") == 1
    assert "http-buffer-request" not in template.partition("frontend")[0]
