"""The systems that are compared: how each is started, asked, checked and stopped."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.peers.environment import peers_python
from serve_app.launcher.environment import free_port
from tests.support.http_client import Answer, format_requests, parse
from tests.support.processes import Tree, started

ROOT = Path(__file__).parents[1]
LOCAL = ROOT / "configs" / "local.yaml"
START_TIMEOUT_S = 120
ASK_TIMEOUT_S = 60
ASKERS = 8
OURS, CEILING = "ours", "ceiling"
READY = "ready"


class SystemFailedError(Exception):
    """Why a system could not be measured, in one sentence."""


@dataclass(frozen=True)
class System:
    """A server of the model.

    Attributes:
        name: In results.
        module: What is run, with a port and the weights.
        path: Where images are posted.
        form_field: Form field of the image, where it is not the body itself.
        agreement: Share of top-1 answers that are to be torchvision's.
        own_environment: Whether it runs in the peers' environment.
        arguments: After port and weights.
        environment: Variables added to ours.
    """

    name: str
    module: str
    path: str
    form_field: str | None = None
    agreement: float = 1.0
    own_environment: bool = True
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether it is the service of this repository."""
        return self.module == "serve_ours"


BENTOML = {"BENTOML_DO_NOT_TRACK": "True"}
PEERS = {
    system.name: system
    for system in (
        System("fastapi", "peers.fastapi_documented", "/predict", own_environment=False),
        System("ray_tutorial", "peers.ray_tutorial", "/predict", own_environment=False),
        System("litserve", "peers.litserve_documented", "/predict"),
        System("litserve_folded", "peers.litserve_folded", "/predict", agreement=0.99),
        System("mosec", "peers.mosec_documented", "/inference"),
        System("mosec_folded", "peers.mosec_folded", "/inference", agreement=0.99),
        System("mosec_kernels", "peers.mosec_kernels", "/inference", agreement=0.99),
        System("fastapi_openvino", "peers.fastapi_openvino", "/predict", agreement=0.99),
        System(
            "bentoml",
            "peers.bentoml_documented",
            "/predict",
            form_field="images",
            environment=BENTOML,
        ),
        System(
            "bentoml_folded",
            "peers.bentoml_folded",
            "/predict",
            form_field="images",
            agreement=0.99,
            environment=BENTOML,
        ),
    )
}


def ours(name: str, config: Path, environment: dict[str, str]) -> System:
    """Our service with a Serve config file, and variables for its Ray."""
    return System(
        name,
        "serve_ours",
        "/v1/classify",
        agreement=0.99,
        own_environment=False,
        arguments=(str(config.resolve()),),
        environment=environment,
    )


@dataclass(frozen=True)
class Running:
    """A system that answers.

    Attributes:
        url: Where images are posted.
        tree: Its processes.
        start_s: How long it took to answer the first image.
    """

    url: str
    tree: Tree
    start_s: float


@contextlib.contextmanager
def running(system: System, weights: Path, image: Path, log: Path) -> Iterator[Running]:
    """Start a system, wait for its first response, and end it with all its processes.

    Args:
        system: Which.
        weights: safetensors file with its card.
        image: To ask with until it answers.
        log: File that gets its output.

    Raises:
        SystemFailedError: It ended or did not answer in time.
    """
    port = free_port()
    python = str(peers_python()) if system.own_environment else sys.executable
    command = [python, "-m", f"benchmarks.{system.module}", str(port), str(weights), *system.arguments]
    url = f"http://127.0.0.1:{port}{system.path}"
    extra = {"RAY_USAGE_STATS_ENABLED": "0", **system.environment}
    with started(command, ROOT, extra, log) as (tree, process):
        begun = time.monotonic()
        while (state := _state(url, image, system.form_field)) != READY:
            if process.poll() is not None:
                raise SystemFailedError(f"ended with exit code {process.returncode}: {tail(log)}")
            if time.monotonic() - begun > START_TIMEOUT_S:
                raise SystemFailedError(f"not ready within {START_TIMEOUT_S} s: {state}; its output: {tail(log)}")
            time.sleep(0.2)
        yield Running(url, tree, round(time.monotonic() - begun, 1))


def _state(url: str, image: Path, form_field: str | None) -> str:
    try:
        answer = ask(url, image, form_field)
    except (OSError, ValueError) as error:
        return str(error)
    return READY if answer.status == 200 else f"HTTP {answer.status}: {answer.body[:300]!r}"


def ask(url: str, image: Path, form_field: str | None) -> Answer:
    """Post one image over a connection of its own.

    Raises:
        OSError: No answer.
    """
    parts = urlsplit(url)
    (request,) = format_requests(parts, [image], 1, form_field)
    with socket.create_connection((parts.hostname, parts.port), timeout=ASK_TIMEOUT_S) as connection:
        connection.sendall(request)
        received = bytearray()
        while (answer := parse(received)) is None:
            data = connection.recv(1 << 16)
            if not data:
                raise ConnectionError("closed before the end of the response")
            received += data
    return answer


def agreement(system: System, url: str, images: Sequence[Path], expected: Sequence[int]) -> float:
    """Share of images, asked several at a time, whose best class is the expected one.

    Raises:
        SystemFailedError: An image was refused.
    """

    def top1(image: Path) -> int:
        answer = ask(url, image, system.form_field)
        if answer.status != 200:
            raise SystemFailedError(f"{image.name}: HTTP {answer.status}: {answer.body[:300]!r}")
        return best_class(json.loads(answer.body))

    with ThreadPoolExecutor(ASKERS) as askers:
        found = list(askers.map(top1, images))
    return sum(a == b for a, b in zip(found, expected, strict=True)) / len(found)


def best_class(answer: Any) -> int:
    """The best class in an answer of ours or of a peer, which may wrap it in a list."""
    if isinstance(answer, list):
        (answer,) = answer
    (result,) = answer.get("results", [answer])
    return int(result["predictions"][0]["class_id"])


def tail(log: Path, characters: int = 1500) -> str:
    """The end of a system's output."""
    return log.read_text(errors="replace")[-characters:].strip()
