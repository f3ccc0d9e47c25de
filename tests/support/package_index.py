"""A stand-in for a package index: wheels without content, served over HTTP."""

from __future__ import annotations

import contextlib
import platform
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PYTHON = f"cp{sys.version_info[0]}{sys.version_info[1]}"
TAG = f"{PYTHON}-{PYTHON}-linux_{platform.machine()}"


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each request."""

    def log_message(self, *_arguments: object) -> None:
        pass


@contextlib.contextmanager
def http_server(handler: Any) -> Iterator[str]:
    """Serve with a handler of ``http.server``; yield the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def package_index(folder: Path) -> contextlib.AbstractContextManager[str]:
    """Serve the files of a folder; yield the address."""
    return http_server(partial(QuietHandler, directory=str(folder)))


def write_index(folder: Path, versions: dict[str, str]) -> None:
    """Write a package index (PEP 503) with one empty wheel of each package, for this Python and machine."""
    for package, version in versions.items():
        (folder / package).mkdir(parents=True)
        name = f"{package}-{version}-{TAG}.whl"
        info = f"{package}-{version}.dist-info"
        with zipfile.ZipFile(folder / package / name, "w") as wheel:
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {TAG}\n")
            wheel.writestr(f"{info}/RECORD", "")
        link = name.replace("+", "%2B")
        (folder / package / "index.html").write_text(f'<!DOCTYPE html><a href="{link}">{name}</a>')
