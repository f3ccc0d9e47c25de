"""Serve our own service as `make run` does, without the page, until a signal: ``PORT WEIGHTS CONFIG``."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from serve_app.inference.weights import sha256
from serve_app.launcher.local import read_config, serving


def main() -> None:
    """Command line."""
    port, weights, path = int(sys.argv[1]), Path(sys.argv[2]).resolve(), Path(sys.argv[3])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config = read_config(path, port, "config")
    config["applications"][0].setdefault("args", {})["weights"] = {"source": str(weights), "sha256": sha256(weights)}
    try:
        with serving(config, port) as (api, _):
            print(f"serving at {api}")
            signal.pause()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
