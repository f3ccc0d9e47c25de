"""Which weights `make run` serves when nobody says: ImageNet's if they can be had, else the demo."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

from serve_app.weights import IMAGENET, imagenet_file

CONNECT_TIMEOUT_S = 3
DOWNLOAD_TIMEOUT_S = 60
DOWNLOAD = "from serve_app.weights import IMAGENET; IMAGENET.get_state_dict(check_hash=True, weights_only=True)"


def choose_weights(say: Callable[[str], None]) -> str:
    """Return ``imagenet`` or ``demo``, and say which and why in one line."""
    if imagenet_file().exists():
        say(f"weights: imagenet, 1000 classes (cached in {imagenet_file().parent})")
        return "imagenet"
    host = urlsplit(IMAGENET.url).hostname
    say(f"weights: looking for ImageNet's at {host}")
    try:
        socket.create_connection((host, 443), CONNECT_TIMEOUT_S).close()
        # In a process of its own, because a download cannot be interrupted from outside.
        subprocess.run([sys.executable, "-c", DOWNLOAD], check=True, timeout=DOWNLOAD_TIMEOUT_S, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        say(f"weights: demo, ten everyday classes (ImageNet's cannot be downloaded: {type(error).__name__})")
        return "demo"
    say("weights: imagenet, 1000 classes (downloaded)")
    return "imagenet"
