"""Short-lived processes: their last line comes back, their errors too, and they end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from serve_app.inference.child import ChildError, run_child
from tests.support.paths import ROOT
from tests.support.polling import wait_for

CHILD = "from serve_app.inference.child import begin_child; begin_child(); print('ready', flush=True); input()"
PARENT = (
    "import subprocess, sys\n"
    f"child = subprocess.Popen([sys.executable, '-c', {CHILD!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
    "child.stdout.readline()\n"
    "print(child.pid, flush=True)\n"
    "child.wait()\n"
)


def test_the_last_line_comes_back() -> None:
    assert run_child("json.tool", "--compact", stdin=b'{"a": [1, 2]}') == '{"a":[1,2]}'


def test_the_last_line_of_an_error_is_the_message() -> None:
    with pytest.raises(ChildError, match=r"^Expecting value: line 1 column 1"):
        run_child("json.tool", stdin=b"?")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_it_ends_with_its_parent() -> None:
    """A replica that Ray kills leaves no measurement behind."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE, 30)
