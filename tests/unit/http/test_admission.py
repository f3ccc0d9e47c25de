"""The door: what is let in, what is refused and when to come again; deadlines; work that nobody waits for."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_app.batcher import Batched
from serve_app.config import AdmissionConfig, LimitsConfig, WeightsConfig
from serve_app.deadline import Deadline, read_deadline
from serve_app.deployments import preprocessor
from serve_app.errors import DeadlineExceededError, InvalidParameterError, OverloadedError, ServiceError
from serve_app.http.admission import Admission, Permit
from serve_app.http.app import create_app
from serve_app.http.service import Answer, Wanted
from serve_app.messages import Classification, ModelState, Named
from serve_app.model_card import ImageTransform, ModelCard
from tests.conftest import MEAN, STD, make_photo
from tests.support.local_service import LocalService

PHOTO = make_photo()
ROOM = 4


class Stages:
    """Stages that take ROOM images at a time and finish 100 a second, on a clock of their own."""

    def __init__(self, tuning: AdmissionConfig) -> None:
        self.now, self.tuning = 0.0, tuning
        self.admission = Admission(lambda: self.tuning, lambda: ROOM, lambda: self.now)
        self.under_way: list[Permit] = []

    def arrive(self, images: int = 1, deadline_s: float = 30) -> None:
        admitted = self.admission.admit(0, Deadline(deadline_s))
        admitted.take(images)
        self.under_way.append(admitted)

    def work(self, seconds: float, per_s: float = 100) -> None:
        for _ in range(round(seconds * per_s)):
            self.now += 1 / per_s
            if self.under_way:
                self.under_way[0].finished(worked=True)
                if not self.under_way[0]._images:
                    self.under_way.pop(0)

    def overload(self, seconds: float, per_s: float = 100) -> int:
        """Ten arrivals for each image that is done; returns how many were refused."""
        refused = 0
        for _ in range(round(seconds * per_s)):
            for _ in range(10):
                try:
                    self.arrive()
                except OverloadedError:
                    refused += 1
            self.work(1 / per_s, per_s)
        return refused


@pytest.fixture
def stages() -> Stages:
    return Stages(AdmissionConfig(max_queue_wait_s=0.5, max_inflight_images=200))


def test_nothing_is_refused_on_a_guess(stages: Stages) -> None:
    """An idle service takes a burst whose pace it cannot know yet, up to the hard cap."""
    for _ in range(200):
        stages.arrive()
    with pytest.raises(OverloadedError, match="200 images are under way"):
        stages.arrive()


def test_a_hiccup_refuses_nobody() -> None:
    """At 60 % load the stages stand still for a third of a second every two, and catch up each time."""
    stages = Stages(AdmissionConfig(max_queue_wait_s=1))
    for _ in range(50):
        for _ in range(18):  # while nothing is done
            stages.now += 1 / 60
            stages.arrive()
        for _ in range(100):
            stages.arrive()
            stages.work(1 / 60)
        assert stages.admission.images <= 1


@pytest.mark.parametrize("per_s", [60, 600])
def test_a_moment_without_answers_is_not_the_pace(per_s: float) -> None:
    """A service that kept up stands still for two thirds of what may be waited: who comes meanwhile is let in."""
    stages = Stages(AdmissionConfig(max_queue_wait_s=1))
    for _ in range(10 * per_s):
        stages.arrive()
        stages.work(1 / per_s, per_s)
    for _ in range(int(per_s * 2 / 3)):
        stages.now += 1 / per_s
        stages.arrive()


def test_the_queue_stays_as_short_as_was_asked_for(stages: Stages) -> None:
    """Ten times what the stages can do: the queue holds half a second of work, and the rest is refused."""
    stages.overload(3)
    assert stages.overload(5) == pytest.approx(9 * 500, rel=0.02)
    waiting = stages.admission.images - ROOM
    assert waiting / 100 == pytest.approx(0.5, rel=0.1)


def test_a_refusal_says_when_to_come_again() -> None:
    stages = Stages(AdmissionConfig(max_queue_wait_s=3, max_inflight_images=10_000))
    stages.overload(20)
    stages.now += 0.05  # nothing came back in it: what is under way waits a little longer
    with pytest.raises(OverloadedError, match=r"would wait 3\.\d s") as refused:
        stages.arrive()
    assert refused.value.retry_after_s == 4
    assert pickle.loads(pickle.dumps(refused.value)).retry_after_s == 4


def test_a_slower_model_shortens_the_queue(stages: Stages) -> None:
    """The pace is that of the last seconds: at a fifth of it a fifth of the images may wait."""
    stages.overload(5)
    stages.overload(20, per_s=20)
    assert (stages.admission.images - ROOM) / 20 == pytest.approx(0.5, rel=0.15)


def test_recovery_is_immediate(stages: Stages) -> None:
    """As soon as the queue is gone everyone is let in, also after an outage in which nothing came back."""
    stages.overload(5)
    stages.work(2)
    stages.arrive()
    for _ in range(ROOM):
        stages.arrive()
    stages.now += 60
    for admitted in stages.under_way:
        admitted.__exit__(None, None, None)
    assert stages.admission.images == 0
    for _ in range(ROOM):
        stages.arrive()


def test_a_client_in_a_hurry_is_told_at_once(stages: Stages) -> None:
    """Where an answer takes longer than a deadline leaves, only those who can wait are let in."""
    stages.overload(5)
    stages.work(0.2)
    with pytest.raises(OverloadedError, match="more than the deadline leaves"):
        stages.arrive(deadline_s=0.1)
    stages.arrive(deadline_s=10)


def test_images_count_as_many_as_they_are(stages: Stages) -> None:
    """Two large requests come at once: the second finds the first one's images before it."""
    stages.overload(5)
    stages.work(1)
    first, second = (stages.admission.admit(0, Deadline(30)) for _ in range(2))
    first.take(64)
    with pytest.raises(OverloadedError, match="would wait"):
        second.take(64)


def test_bodies_in_memory_are_bounded(stages: Stages) -> None:
    """Declared bytes are counted before they come, others as they come; all are let go of in the end."""
    stages.tuning = AdmissionConfig(max_buffered_bytes=100)
    declared = stages.admission.admit(90, Deadline(30))
    with pytest.raises(OverloadedError, match="hold 0 MB already"):
        stages.admission.admit(20, Deadline(30))
    undeclared = stages.admission.admit(0, Deadline(30))
    undeclared.received(10)
    with pytest.raises(OverloadedError):
        undeclared.received(1)
    for each in (declared, undeclared):
        each.__exit__(None, None, None)
    assert stages.admission.buffered_bytes == 0


def test_failures_say_nothing_about_the_pace(stages: Stages) -> None:
    """Images that gave up waiting were not worked on: the queue does not grow because of them."""
    stages.overload(5)
    before = stages.admission._pace.seconds_for(100)
    admitted = stages.under_way.pop()
    admitted.finished(worked=False)
    assert stages.admission._pace.seconds_for(100) == pytest.approx(before)


def test_a_deadline_travels_as_what_is_left() -> None:
    deadline = Deadline(10)
    time.sleep(0.05)
    assert pickle.loads(pickle.dumps(deadline)).left_s() == pytest.approx(9.95, abs=0.04)
    with pytest.raises(DeadlineExceededError):
        Deadline(0).check()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 30),
        ({"x-request-timeout-ms": "250"}, 0.25),
        ({"x-request-timeout-seconds": "2.5"}, 2.45),
        ({"x-request-timeout-ms": "9000", "x-request-timeout-seconds": "4"}, 3.95),
        ({"x-request-timeout-ms": "90000"}, 30),
    ],
)
def test_the_sooner_deadline_holds(headers: dict[str, str], seconds: float) -> None:
    """The client's, a little before Ray Serve's own would answer in plain text, or the server's."""
    assert read_deadline(headers, 30).left_s() == pytest.approx(seconds, abs=0.01)


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "nan", "inf"])
def test_a_deadline_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameterError, match=r"x-request-timeout-ms: .* is not a positive number"):
        read_deadline({"x-request-timeout-ms": text}, 30)


@pytest.fixture
def service(weights: WeightsConfig) -> LocalService:
    return LocalService(weights)


@pytest.fixture
def http(service: LocalService) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


PATHS = ("/v1/classify", "/predict", "/v2/models/resnet18/infer")


@pytest.mark.parametrize("path", PATHS)
def test_refusals_are_problems_with_retry_after(http: TestClient, service: LocalService, path: str) -> None:
    """At each way in: 503 in the form of that way, before the body was looked at."""
    service.admission = SimpleNamespace(max_queue_wait_s=1, max_inflight_images=0, max_buffered_bytes=1)  # type: ignore[assignment]
    response = http.post(path, content=b"not even an image")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.headers["x-request-id"]
    body = response.json()
    assert body["error"] if path.startswith("/v2") else body["code"] == "overloaded"
    assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", PATHS[:2])
def test_a_client_sets_its_deadline(http: TestClient, service: LocalService, path: str) -> None:
    """An answer that comes too late for it is a 504, a deadline that is none a 422."""
    service.delay_s = 5
    late = http.post(path, content=PHOTO, headers={"X-Request-Timeout-Ms": "50"})
    assert (late.status_code, late.json()["code"], late.json()["detail"]) == (
        504,
        "deadline_exceeded",
        "no answer within 0.05 s",
    )
    wrong = http.post(path, content=PHOTO, headers={"X-Request-Timeout-Ms": "soon"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_parameter")


async def test_a_sender_that_never_ends_is_not_awaited(service: LocalService) -> None:
    """A body that does not come within the deadline is a 408; its place is free again."""
    service.limits = LimitsConfig(deadline_s=0.1)
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/classify",
        "headers": [(b"content-length", b"100")],
        "query_string": b"",
    }
    sent: list[dict[str, Any]] = []
    chunks = iter([{"type": "http.request", "body": b"x", "more_body": True}])

    async def receive() -> dict[str, Any]:
        for chunk in chunks:
            return chunk
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    await create_app(service)(scope, receive, send)
    assert sent[0]["status"] == 408


class Model:
    """A classify stage that answers at once."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self.ping = SimpleNamespace(remote=self.state)

    async def state(self) -> ModelState:
        return ModelState(card=self.card)

    async def remote(self, pixels: np.ndarray, asked: list[Any], company: int) -> list[Batched[Named]]:
        found = Classification(class_ids=(0,), scores=(1.0,), margin=1, entropy=0)
        return [Batched(Named(found, self.card.ref, {0: "cat"}), 1, 0, 0) for _ in asked]


async def test_what_nobody_waits_for_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four images two come too late: two are decoded, two are deadline errors."""
    decoded = []
    real = preprocessor.preprocess

    def counting(encoded: bytes, *rest: Any) -> Any:
        decoded.append(encoded)
        return real(encoded, *rest)

    monkeypatch.setattr(preprocessor, "cores", lambda: 1)
    monkeypatch.setattr(preprocessor, "stay_on_loopback", lambda: None)
    monkeypatch.setattr(preprocessor, "preprocess", counting)
    transform = ImageTransform(resize_px=112, crop_px=96, mean=MEAN, std=STD)
    card = ModelCard(name="resnet18", version="1", labels=("cat", "dog"), transform=transform, sha256="0" * 64)
    kind = preprocessor.Preprocessor.func_or_class  # type: ignore[attr-defined] # Ray's
    stage = kind.__new__(kind)
    await stage.__init__(Model(card), transform)  # as Serve does
    wanted = [Wanted(make_photo(seed), 1, None, 10**7, Deadline(60 if seed % 2 else -1)) for seed in range(4)]
    answers: list[Answer | ServiceError] = await stage(wanted, 4)
    assert [type(answer) for answer in answers] == [DeadlineExceededError, Answer] * 2
    assert decoded == [wanted[1].encoded, wanted[3].encoded]


async def test_who_gives_up_has_no_more_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four images the first is being decoded when its caller goes away: it ends, and the others never begin."""
    begun, may_end = threading.Event(), threading.Event()
    decoded: list[str] = []

    def waiting(wanted: str) -> str:
        begun.set()
        may_end.wait(10)
        decoded.append(wanted)
        return wanted

    kind = preprocessor.Preprocessor.func_or_class  # type: ignore[attr-defined] # Ray's
    stage = kind.__new__(kind)
    with ThreadPoolExecutor(1) as threads:
        stage._cores, stage._threads = 1, threads
        monkeypatch.setattr(stage, "_decode", waiting)
        task = asyncio.create_task(stage._decode_all(["a", "b", "c", "d"]))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_end.set()
    assert decoded == ["a"]
    with ThreadPoolExecutor(1) as threads:
        stage._threads = threads
        assert await stage._decode_all(["a", "b"]) == ["a", "b"]
