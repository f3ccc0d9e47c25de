"""Find out whether ImageNet's weights are available: cached, or downloadable now.

``python -m serve_app.launcher.imagenet`` is a process of its own: the launcher needs no torch, and can stop a slow
download. The image's build runs it to download the weights into the image.
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
    """Load the weights once; on failure exit with code 1 and the reason as last line of stderr."""
    try:
        if not imagenet_file().exists():
            socket.create_connection((urlsplit(IMAGENET.url).hostname, 443), CONNECT_TIMEOUT_S).close()
        load_model(WeightsConfig(source="imagenet"))
    except (OSError, WeightsError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
