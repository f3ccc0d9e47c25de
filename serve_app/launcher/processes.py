"""Child processes of `serve-app run`: the page, waiting for an answer, signals and the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

import httpx2
import psutil

from serve_app.console import say
from serve_app.paths import IS_CHECKOUT, PAGE, ROOT

PAGE_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15
POLL_S = 0.2


class StartError(Exception):
    """The service cannot start; the message says why and what to do, in one sentence."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came: finish the requests in flight and write their rows, then stop."""


@contextlib.contextmanager
def page(api: str, port: int, host: str) -> Iterator[str]:
    """Run the Streamlit page against an API.

    Args:
        api: Base URL of the API.
        port: Port of the page.
        host: Address on which the page listens.

    Yields:
        The page's URL, once the page answers.

    Raises:
        StartError: The page ended, or did not answer in time.
    """
    say("starting the page")
    listen = [f"--server.address={host}", f"--server.port={port}"]
    command = [sys.executable, "-m", "streamlit", "run", str(PAGE), *listen]
    folder = ROOT if IS_CHECKOUT else None  # Streamlit looks for .streamlit/secrets.toml there
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "API_URL": api}, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def failure() -> str | None:
        code = process.poll()
        return None if code is None else f"the page ended with exit code {code}; its output is above"

    try:
        wait_until_ok(f"{url}/_stcore/health", PAGE_TIMEOUT_S, "the page", failure)
        yield url
    finally:
        end([psutil.Process(process.pid)] if process.poll() is None else [])


def wait_until_ok(url: str, timeout_s: float, name: str, failure: Callable[[], str | None]) -> None:
    """Poll a URL until it answers 200.

    Args:
        url: What to GET.
        timeout_s: How long that may take.
        name: What the error message calls the server.
        failure: Returns why the server will never answer, or None while it may.

    Raises:
        StartError: The server failed, or did not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(url).status_code == 200:
                return
        if reason := failure():
            raise StartError(reason)
        time.sleep(POLL_S)
    raise StartError(f"{name} did not answer within {timeout_s:.0f} s")


def end(processes: list[psutil.Process]) -> None:
    """Send SIGTERM to processes, wait, and kill those that remain."""
    for force in (False, True):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill() if force else process.terminate()
        _, processes = psutil.wait_procs(processes, STOP_TIMEOUT_S)


@contextlib.contextmanager
def ignore_interrupts() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM while the clean-up runs: a second Ctrl-C would leave processes behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_on_signals() -> None:
    """Raise KeyboardInterrupt on Ctrl-C and on a closed terminal, Terminated on SIGTERM.

    Python leaves SIGINT ignored in a background job, and Ray replaces the handlers when it starts.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _raise)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
