"""Download ImageNet's weights with torchvision and convert them to safetensors, which the service reads without torch.

``python -m serve_app.inference.imagenet_download [TIMEOUT_S]`` is a process of its own: torch and torchvision take
seconds and 400 MB, and the launcher can stop a slow download. The image's build runs it, without a timeout, to have the
weights in the image.
"""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from torchvision.models import ResNet18_Weights

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsError, WeightsUnavailableError
from serve_app.files import delete_partial_files
from serve_app.inference.card import load_card, one_line
from serve_app.inference.child import begin_child
from serve_app.inference.torch_model import write_tensors
from serve_app.inference.weights import ConvertedCopy, converted_file, find_imagenet, load_weights, sha256
from serve_app.paths import torch_checkpoints

IMAGENET = WeightsConfig(source="imagenet")
WEIGHTS = ResNet18_Weights.IMAGENET1K_V1
CONNECT_TIMEOUT_S = 3
HTTPS = 443


def main(timeout_s: int = 0) -> None:
    """Download and convert the weights once; on failure exit with code 1 and the reason as last line of stderr.

    After ``timeout_s`` seconds (0: never) a download ends with an error, which deletes its partial file.
    """

    def time_out(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the download took more than {timeout_s} s")

    signal.signal(signal.SIGALRM, time_out)
    signal.alarm(timeout_s)
    try:
        if not find_imagenet(load_card(IMAGENET).sha256):
            if timeout_s and not downloaded_file().exists():
                address = urlsplit(WEIGHTS.url)
                socket.create_connection((address.hostname, address.port or HTTPS), CONNECT_TIMEOUT_S).close()
            convert()
        load_weights(IMAGENET)
    except (OSError, WeightsError) as error:
        sys.exit(str(error))


def convert() -> None:
    """Write the safetensors copy beside torchvision's file, which is downloaded if need be, and the copy's hash.

    Raises:
        WeightsUnavailableError: No connection, a wrong hash, a full disk, or a cache that cannot be read.
    """
    digest = load_card(IMAGENET).sha256
    try:
        delete_partial_files(cached := downloaded_file())
        if cached.exists() and not sha256(cached).startswith(digest):  # torch checks a download, not its cache
            cached.unlink()
        state = WEIGHTS.get_state_dict(progress=False, check_hash=True, weights_only=True)
        path = converted_file(digest)
        write_tensors(dict(state), path)
        ConvertedCopy(sha256=sha256(path)).write(path)
    except Exception as error:
        reason = f"cannot download {WEIGHTS.url} or read {downloaded_file()}: {one_line(error)}"
        raise WeightsUnavailableError(f"weights imagenet: {reason}") from error


def downloaded_file() -> Path:
    """Return the path where torchvision caches the weights."""
    return torch_checkpoints() / Path(urlsplit(WEIGHTS.url).path).name


if __name__ == "__main__":
    begin_child()
    main(*map(int, sys.argv[1:]))
