"""What stands in HAProxy's place: it corrects the addresses that Ray writes, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from serve_app.loopback import wrap_haproxy

WRITTEN = """frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8000
listen stats
  bind *:8404
  bind *:84040
server one 127.0.0.1:8000
"""


@pytest.mark.parametrize(("host", "public"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "*")])
def test_only_the_api_listens_where_it_was_asked_to(tmp_path: Path, host: str, public: str) -> None:
    """Also when Ray writes the file again; the arguments reach HAProxy as they were."""
    program, config = tmp_path / "haproxy", tmp_path / "haproxy.cfg"
    wrap_haproxy(program, "/bin/echo", host, 8000, ["8404", "9101"])
    config.write_text(WRITTEN)
    for _ in range(2):
        done = subprocess.run([program, "-db", "-f", config], capture_output=True, text=True, check=True)
        assert done.stdout == f"-db -f {config}\n"
    assert config.read_text() == WRITTEN.replace(":9101", "127.0.0.1:9101").replace(
        "*:8404\n", "127.0.0.1:8404\n"
    ).replace("bind 127.0.0.1:8000", f"bind {public}:8000")
