"""Print which weights `make run` serves when nobody says: ImageNet's if they can be had, else the demo.

A process of its own, so that the launcher needs no torch and a slow download can be cut off.
"""

from __future__ import annotations

import socket
import sys
from urllib.parse import urlsplit

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError
from serve_app.inference.weights import IMAGENET, imagenet_file, load_model

CONNECT_TIMEOUT_S = 3


def main() -> None:
    """Print ``imagenet`` when its weights are cached or could be downloaded."""
    try:
        if not imagenet_file().exists():
            socket.create_connection((urlsplit(IMAGENET.url).hostname, 443), CONNECT_TIMEOUT_S).close()
        load_model(WeightsConfig(source="imagenet"))
    except (OSError, WeightsError) as error:
        sys.exit(str(error))
    sys.stdout.write("imagenet")


if __name__ == "__main__":
    main()
