"""Find out whether ImageNet's weights are available: cached, or downloadable now.

``python -m serve_app.launcher.imagenet [TIMEOUT_S]`` is a process of its own: the launcher needs no torch, and can stop
a slow download. The image's build runs it, without a timeout, to download the weights into the image.
"""

from __future__ import annotations

import signal
import socket
import sys
from types import FrameType
from urllib.parse import urlsplit

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError
from serve_app.inference.weights import IMAGENET, imagenet_file, load_model

CONNECT_TIMEOUT_S = 3
HTTPS = 443


def main(timeout_s: int = 0) -> None:
    """Load the weights once; on failure exit with code 1 and the reason as last line of stderr.

    After ``timeout_s`` seconds (0: never) a download ends with an error, which deletes its partial file.
    """

    def time_out(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the download took more than {timeout_s} s")

    signal.signal(signal.SIGALRM, time_out)
    signal.alarm(timeout_s)
    try:
        if not imagenet_file().exists():
            address = urlsplit(IMAGENET.url)
            socket.create_connection((address.hostname, address.port or HTTPS), CONNECT_TIMEOUT_S).close()
        load_model(WeightsConfig(source="imagenet"))
    except (OSError, WeightsError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
