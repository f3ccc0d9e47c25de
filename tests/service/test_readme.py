"""The requests that README.md shows, sent by curl to the running service."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.photos import make_photo
from tests.support.readme import README, commands
from tests.support.running import Running

PARAMETERS = sorted(set(re.findall(r"`[?&]([\w]+=[\w.]+)", README)))


HEAD_COMMANDS = [command for command in commands("curl") if "cups" in command]

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def answer(running: Running, folder: Path, command: str) -> dict[str, Any]:
    """Run a command as the README shows it, without `…`, with photos of its names in the current folder."""
    for seed, name in enumerate(photo_names(command)):
        (folder / name).write_bytes(make_photo(seed))
    words = [word.replace("localhost:8000", running.api) for word in shlex.split(command) if word != "…"]
    done = subprocess.run([*words, "--fail-with-body", "--silent"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    body: dict[str, Any] = json.loads(done.stdout)
    return body


def photo_names(command: str) -> list[str]:
    return re.findall(r"@(\S+)", command)


@pytest.mark.parametrize("command", [command for command in commands("curl") if command not in HEAD_COMMANDS])
def test_curl_gets_an_answer_for_each_photo(running: Running, tmp_path: Path, command: str) -> None:
    body = answer(running, tmp_path, command)
    assert body["summary"] == {"ok": len(photo_names(command)), "failed": 0}
    example = json.loads(re.sub(r", …|…", "", re.findall(r"```json\n(.*?)```", README, re.S)[0]))
    assert set(example["results"][0]) <= set(body["results"][0])


def test_curl_teaches_a_head_and_uses_it(running: Running, tmp_path: Path) -> None:
    teach, use = sorted(HEAD_COMMANDS, key=lambda command: "-X PUT" not in command)
    assert [each["name"] for each in answer(running, tmp_path, teach)["report"]["classes"]] == ["mine", "others"]
    (result,) = answer(running, tmp_path, use)["results"]
    assert result["heads"]["cups"]["predictions"][0]["label"] in ("mine", "others")


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_parameters_exist(running: Running, parameter: str) -> None:
    """The service refuses parameters that it does not know."""
    name, value = parameter.split("=")
    parameters = {"explain": "cam", name: "0" if name == "explain_class" else value}  # the demo model has few classes
    response = httpx2.post(f"{running.api}/v1/classify", params=parameters, content=make_photo(), timeout=60)
    assert response.status_code == 200, response.text
