"""A running service that writes everything it can write, and what must still be there after its sudden end.

Clients classify photos, vote, submit jobs; two programs beside the service publish weights and run the ETL. ``Writes``
remembers what was acknowledged, and ``check`` looks for it in the service that was started again.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import httpx2
import psutil

from serve_app.analytics import etl
from serve_app.config import WeightsConfig
from serve_app.inference.torch_model import load_model
from serve_app.observability.feedback_store import VOTES, Vote
from serve_app.release.serve_config import Config
from tests.support.configs import local, tuned
from tests.support.paths import ROOT
from tests.support.photos import make_photo
from tests.support.polling import wait_for
from tests.support.services import zipped
from tests.support.weights import TINY_LABELS

FLUSH_S = 1
UNFLUSHED_S = FLUSH_S + 2  # rows younger than this may be lost: one interval, and the file that is being written
JOB_IMAGES = 40
MAX_JOBS = 4  # of a round: some still run at its end, and the next service finishes them within a minute or two
JOB_END_S = 180

PUBLISH = """
import itertools, pathlib, sys, time
from serve_app.training.publish import publish_to
from tests.support.weights import publish_random
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
for number in itertools.count():
    version = f"{name}-{number}"
    publish_random(folder / "trained" / version, seed=number, version=version)
    published = publish_to(str(folder / "registry"), folder / "trained" / version / "model.safetensors")
    print(published.model_dump_json(), flush=True)
    time.sleep(0.5)
"""
ETL = """
import pathlib, sys, time
from serve_app.analytics import etl
while True:
    try:
        etl.run(pathlib.Path(sys.argv[1]))
        print("done", flush=True)
    except etl.EtlError:  # there is no log yet, or the service runs its own ETL
        pass
    time.sleep(0.5)
"""


def writing_config(folder: Path) -> Config:
    """configs/local.yaml with log, feedback and jobs below a folder."""
    config = tuned(
        local(),
        "Ingress",
        prediction_log={"folder": str(folder / "predictions"), "flush_s": FLUSH_S},
        feedback={"folder": str(folder / "feedback"), "keep_images": True},
        jobs={"folder": str(folder / "jobs"), "workers": 1},
    )
    config["applications"][0]["args"]["engine"] = {"runtime": "onnxruntime"}  # `auto` would measure first
    return config


@dataclass
class Writes:
    """What the service, or a program beside it, has acknowledged.

    Attributes:
        classified: Time of the response by request id.
        votes: SHA-256 of the image by request id.
        jobs: Paths of jobs.
        published: Weights that `publish` has printed.
        etl_runs: Runs of the ETL that ended.
    """

    classified: dict[str, float] = field(default_factory=dict)
    votes: dict[str, str] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    published: list[WeightsConfig] = field(default_factory=list)
    etl_runs: int = 0

    def forget_unflushed(self, died_at: float) -> None:
        """Forget the requests whose rows a service that died at this time had not yet written."""
        self.classified = {name: time_s for name, time_s in self.classified.items() if time_s < died_at - UNFLUSHED_S}

    def counts(self) -> dict[str, int]:
        """Return how many of each kind."""
        return {
            "classified": len(self.classified),
            "votes": len(self.votes),
            "jobs": len(self.jobs),
            "published": len(self.published),
            "etl runs": self.etl_runs,
        }


class Writer:
    """Makes a service and two programs write until ``stop``; used as a context manager.

    Args:
        api: Base URL of the service.
        folder: As for ``writing_config``.
        writes: Collects what was acknowledged.
        name: Of this round; request ids and versions start with it.
        environment: Of the two programs.
    """

    def __init__(self, api: str, folder: Path, writes: Writes, name: str, environment: dict[str, str]) -> None:
        self.programs: list[psutil.Process] = []
        self._api, self._folder, self._writes, self._name, self._environment = api, folder, writes, name, environment
        self._stop, self._stack, self._before = threading.Event(), ExitStack(), writes.counts()

    def __enter__(self) -> Writer:
        pool = self._stack.enter_context(ThreadPoolExecutor(8))
        self._stack.callback(self._stop.set)
        for each in (self._classify, self._classify, self._vote, self._submit):
            pool.submit(self._until_stopped, each)
        for program, arguments, note in (
            (PUBLISH, (self._folder, self._name), self._note_published),
            (ETL, (self._folder / "predictions",), self._note_etl),
        ):
            pool.submit(self._read, self._start(program, *map(str, arguments)), note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for program in self.programs:
            with suppress(psutil.NoSuchProcess):
                program.kill()
        self._stack.close()

    def wait_for_each_kind(self) -> None:
        """Wait until something of each kind was acknowledged since this began."""
        before = self._before
        wait_for(
            lambda: all(n > before[kind] for kind, n in self._writes.counts().items()), 180, "a write of each kind"
        )

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, **self._environment}
        environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), environment.get("PYTHONPATH", "")))
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], env=environment, stdout=subprocess.PIPE, text=True
        )
        self.programs.append(psutil.Process(process.pid))
        return process

    def _until_stopped(self, send: Callable[[httpx2.Client, str], None]) -> None:
        number = 0
        with httpx2.Client(base_url=self._api, timeout=60) as http:
            while not self._stop.is_set():
                number += 1
                try:
                    send(http, f"{self._name}-{threading.get_ident()}-{number}")
                except httpx2.HTTPError:  # the power is cut
                    self._stop.wait(0.1)

    def _read(self, process: subprocess.Popen[str], note: Callable[[str], None]) -> None:
        assert process.stdout
        with process, process.stdout as lines:
            for line in lines:
                if line.endswith("\n"):
                    note(line)

    def _note_published(self, line: str) -> None:
        self._writes.published.append(WeightsConfig.model_validate_json(line))

    def _note_etl(self, line: str) -> None:
        self._writes.etl_runs += 1

    def _classify(self, http: httpx2.Client, request_id: str) -> None:
        response = http.post("/v1/classify", content=make_photo(), headers={"x-request-id": request_id})
        if response.status_code == 200:
            self._writes.classified[request_id] = time.time()
        time.sleep(0.02)

    def _vote(self, http: httpx2.Client, request_id: str) -> None:
        photo = make_photo(len(self._writes.votes))
        form = {"request_id": request_id, "label": TINY_LABELS[0]}
        response = http.post("/v1/feedback", data=form, files={"image": photo})
        if response.status_code == 204:
            self._writes.votes[request_id] = hashlib.sha256(photo).hexdigest()
        time.sleep(0.05)

    def _submit(self, http: httpx2.Client, request_id: str) -> None:
        if len(self._writes.jobs) - self._before["jobs"] >= MAX_JOBS:
            self._stop.wait(2)
            return
        photos = {f"{n}.jpg": make_photo(n) for n in range(JOB_IMAGES)}
        headers = {"content-type": "application/zip", "idempotency-key": request_id}
        response = http.post("/v1/jobs", content=zipped(photos, 1), headers=headers)
        if response.status_code == 202:
            self._writes.jobs.append(response.headers["location"])
        self._stop.wait(2)


def check(writes: Writes, api: str, folder: Path, died_at: float) -> list[str]:
    """Return what is missing or wrong in a service that was started again, a sentence each.

    Waits until all jobs have ended.

    Args:
        writes: What was acknowledged before the end.
        api: Base URL of the new service.
        folder: As for ``writing_config``.
        died_at: Time of the end, in seconds since 1970.
    """
    with httpx2.Client(base_url=api, timeout=60) as http:
        problems = list(_wrong_jobs(http, writes))
    return [*problems, *_wrong_votes(writes, folder), *_wrong_rows(writes, folder, died_at), *_wrong_weights(writes)]


def _wrong_jobs(http: httpx2.Client, writes: Writes) -> Iterator[str]:
    for path in writes.jobs:
        if http.get(path).status_code != 200:
            yield f"{path}: {http.get(path).text}"
            continue
        wait_for(lambda path=path: http.get(path).json()["status"] not in ("queued", "running"), JOB_END_S, path)
        state = http.get(path).json()
        if (state["status"], state["progress"]["done"]) != ("succeeded", JOB_IMAGES):
            yield f"{path}: {state}"
            continue
        rows = Counter(row["path"] for row in http.get(f"{path}/results").json())
        if set(rows.values()) != {1} or len(rows) != JOB_IMAGES:
            yield f"{path}: rows {rows}"


def _wrong_votes(writes: Writes, folder: Path) -> Iterator[str]:
    found: dict[str, str] = {}
    for path in (folder / "feedback" / VOTES).glob("[!.]*.json"):
        try:
            vote = Vote.model_validate_json(path.read_bytes())
            assert vote.image
            found[vote.request_id] = hashlib.sha256((folder / "feedback" / vote.image).read_bytes()).hexdigest()
        except (ValueError, OSError) as error:
            yield f"{path}: {error}"
    for request_id, digest in writes.votes.items():
        if found.get(request_id) != digest:
            yield f"vote {request_id}: {found.get(request_id, 'missing')}"


def _wrong_rows(writes: Writes, folder: Path, died_at: float) -> Iterator[str]:
    report = etl.run(folder / "predictions")
    yield from report.rejected_files
    for table in ("hours", "classes", "histograms"):
        duckdb.read_parquet(str(folder / "predictions" / etl.SUMMARY / table / "*.parquet")).fetchall()
    rows = duckdb.read_parquet(str(folder / "predictions" / etl.DAYS / "*.parquet"))
    counts = Counter(request_id for (request_id,) in rows.project("request_id").fetchall())
    for request_id, answered_at in writes.classified.items():
        if counts[request_id] > 1 or (not counts[request_id] and answered_at < died_at - UNFLUSHED_S):
            age_s = died_at - answered_at
            yield f"request {request_id}, answered {age_s:.1f} s before the end: {counts[request_id]} rows"


def _wrong_weights(writes: Writes) -> Iterator[str]:
    for weights in writes.published:
        try:
            load_model(weights)
        except Exception as error:
            yield f"{weights.source}: {error}"
