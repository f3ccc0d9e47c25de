"""The requests that README.md shows, sent by curl to the running service."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.support.photos import make_photo
from tests.support.readme import README, commands
from tests.support.running import Running

PARAMETERS = sorted(set(re.findall(r"`[?&]([\w]+=[\w.]+)", README)))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", commands("curl"))
def test_curl_gets_an_answer_for_each_photo(running: Running, tmp_path: Path, command: str) -> None:
    """As the README shows it, with photos of these names in the current folder."""
    photos = re.findall(r"@(\S+)", command)
    for name in photos:
        (tmp_path / name).write_bytes(make_photo())
    words = [word.replace("localhost:8000", running.api) for word in shlex.split(command)]
    done = subprocess.run([*words, "--fail-with-body", "--silent"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    body = json.loads(done.stdout)
    assert body["summary"] == {"ok": len(photos), "failed": 0}
    example = json.loads(re.sub(r", …|…", "", re.findall(r"```json\n(.*?)```", README, re.S)[0]))
    assert set(example["results"][0]) <= set(body["results"][0])


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_parameters_exist(running: Running, parameter: str) -> None:
    """The service refuses parameters that it does not know."""
    name, value = parameter.split("=")
    parameters = {"explain": "cam", name: "0" if name == "explain_class" else value}  # the demo model has few classes
    response = httpx2.post(f"{running.api}/v1/classify", params=parameters, content=make_photo(), timeout=60)
    assert response.status_code == 200, response.text
