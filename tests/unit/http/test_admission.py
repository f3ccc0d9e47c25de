"""Admission control: what is let in, what is refused, and when to retry."""

from __future__ import annotations

import pickle
from contextlib import ExitStack, suppress

import pytest

from serve_app.config import AdmissionConfig, IngressConfig
from serve_app.deadline import Deadline
from serve_app.errors import OverloadedError
from serve_app.http.admission import AdmissionController, Permit
from tests.support.clock import FakeClock

CAPACITY = 4


class Stages:
    """Stages that take CAPACITY images at a time and finish 100 per second, on a fake clock."""

    def __init__(self, limits: AdmissionConfig) -> None:
        self.clock = FakeClock()
        self.limits = limits
        self.admission = AdmissionController(self.config, self.clock)
        self.in_flight: list[tuple[Permit, int]] = []

    def config(self) -> IngressConfig:
        return IngressConfig(admission=self.limits, max_inflight_groups=1, max_group_size=CAPACITY)

    def arrive(self, images: int = 1, deadline_s: float = 30, caller: str = "heavy") -> None:
        permit = self.admission.admit(0, Deadline(deadline_s), caller=caller)
        permit.add_images(images)
        self.in_flight.append((permit, images))

    def work(self, seconds: float, per_s: float = 100) -> None:
        for _ in range(round(seconds * per_s)):
            self.clock.advance(1 / per_s)
            if self.in_flight:
                permit, images = self.in_flight.pop(0)
                permit.finish_image(completed=True)
                if images > 1:
                    self.in_flight.insert(0, (permit, images - 1))
                else:
                    permit.__exit__(None, None, None)

    def overload(self, seconds: float, per_s: float = 100, deadline_s: float = 0.5) -> int:
        """Let ten images arrive per finished image; return how many were refused."""
        refused = 0
        for _ in range(round(seconds * per_s)):
            for _ in range(10):
                try:
                    self.arrive(deadline_s=deadline_s)
                except OverloadedError:
                    refused += 1
            self.work(1 / per_s, per_s)
        return refused


@pytest.fixture
def stages() -> Stages:
    return Stages(AdmissionConfig(max_inflight_images=200))


def test_an_unknown_throughput_refuses_nothing(stages: Stages) -> None:
    """An idle service takes a burst up to the hard limit, because it has not measured its throughput."""
    for _ in range(150):
        stages.arrive()
    with pytest.raises(OverloadedError, match=r"150 images are already in flight \(limit: .*max_inflight_images = 200"):
        stages.arrive()


def test_a_caller_leaves_room_for_others(stages: Stages) -> None:
    """Callers that take all they may take: each later one still gets places, and so does one more."""

    def fill(caller: str) -> int:
        for taken in range(1000):
            try:
                stages.arrive(caller=caller)
            except OverloadedError:
                return taken
        raise AssertionError("no limit")

    assert [fill(caller) for caller in ("first", "second", "third")] == [150, 38, 9]
    stages.arrive(caller="another")


def test_short_stalls_refuse_nothing() -> None:
    """At 60 % load, a stall of 0.3 s every two seconds refuses no image that may take a second."""
    stages = Stages(AdmissionConfig())
    for _ in range(50):
        for _ in range(18):  # nothing finishes
            stages.clock.advance(1 / 60)
            stages.arrive(deadline_s=1)
        for _ in range(100):
            stages.arrive(deadline_s=1)
            stages.work(1 / 60)
        assert stages.admission.images <= 1


@pytest.mark.parametrize("per_s", [60, 600])
def test_a_stall_is_not_taken_for_the_throughput(per_s: float) -> None:
    """After a stall of two thirds of the deadline, new images are still let in."""
    stages = Stages(AdmissionConfig())
    for _ in range(10 * per_s):
        stages.arrive()
        stages.work(1 / per_s, per_s)
    for _ in range(int(per_s * 2 / 3)):
        stages.clock.advance(1 / per_s)
        stages.arrive(deadline_s=1)


@pytest.mark.parametrize("deadline_s", [0.5, 5])
def test_patient_clients_wait(deadline_s: float) -> None:
    """At ten times the capacity the queue holds as much work as the deadline allows, and only the rest is refused."""
    stages = Stages(AdmissionConfig(max_inflight_images=10_000))
    stages.overload(10, deadline_s=deadline_s)
    assert stages.overload(2, deadline_s=deadline_s) == pytest.approx(9 * 200, rel=0.02)
    assert stages.admission.images / 100 == pytest.approx(deadline_s, rel=0.1)


def test_a_caller_with_few_images_does_not_wait_for_all_of_another_caller() -> None:
    """Of two callers, the one whose queue is full is refused; the other has a second, and that is enough."""
    stages = Stages(AdmissionConfig(max_inflight_images=10_000))
    stages.overload(5, deadline_s=30)
    with pytest.raises(OverloadedError):
        stages.arrive(deadline_s=1)
    for _ in range(45):  # 50 images of each caller, in turns, take a second
        stages.arrive(deadline_s=1, caller="light")
    for _ in range(5):
        with suppress(OverloadedError):
            stages.arrive(deadline_s=1, caller="light")
    with pytest.raises(OverloadedError):
        stages.arrive(deadline_s=1, caller="light")


def test_a_refusal_says_when_to_retry() -> None:
    """Retry-After is the expected wait, and survives pickling."""
    stages = Stages(AdmissionConfig(max_inflight_images=10_000))
    stages.overload(20, deadline_s=3)
    stages.clock.advance(0.05)  # nothing finished, so the wait has grown
    with pytest.raises(OverloadedError, match=r"a result takes 3\.\d s now, longer than .*, in 3\.0 s;") as refused:
        stages.arrive(deadline_s=3)
    assert refused.value.retry_after_s == 4
    assert pickle.loads(pickle.dumps(refused.value)).retry_after_s == 4


def test_a_slower_model_shortens_the_queue(stages: Stages) -> None:
    """The estimate follows the last seconds: at a fifth of the throughput, a fifth of the images may wait."""
    stages.overload(5)
    stages.overload(20, per_s=20)
    assert (stages.admission.images + CAPACITY) / 20 == pytest.approx(0.5, rel=0.15)  # its group takes time too


def test_recovery_is_immediate(stages: Stages) -> None:
    """Once the queue is empty, images are let in at once, also after an outage in which nothing finished."""
    stages.overload(5)
    stages.work(2)
    stages.arrive()
    for _ in range(CAPACITY):
        stages.arrive()
    stages.clock.advance(60)
    for permit, _ in stages.in_flight:
        permit.__exit__(None, None, None)
    assert stages.admission.images == 0
    for _ in range(CAPACITY):
        stages.arrive()


def test_a_deadline_that_cannot_be_met_is_refused_at_once(stages: Stages) -> None:
    """A request whose deadline is shorter than the expected time is refused; one that can wait is let in."""
    stages.overload(5)
    stages.work(0.2)
    with pytest.raises(OverloadedError, match="longer than the request's deadline"):
        stages.arrive(deadline_s=0.1)
    stages.arrive(deadline_s=10)


def test_all_images_of_a_request_count(stages: Stages) -> None:
    """Of two large requests that arrive together, the second sees the images of the first."""
    stages.overload(5)
    stages.work(1)
    first, second = (stages.admission.admit(0, Deadline(0.5)) for _ in range(2))
    first.add_images(64)
    with pytest.raises(OverloadedError, match="longer than the request's deadline"):
        second.add_images(64)


def test_bodies_in_memory_are_bounded(stages: Stages) -> None:
    """Declared bytes count on admission, others as they arrive; all are released at the end.

    A caller leaves a quarter of the memory to others.
    """
    stages.limits = AdmissionConfig(max_buffered_bytes=100)
    declared = stages.admission.admit(60, Deadline(30))
    with pytest.raises(OverloadedError, match=r"request bodies in memory .*max_buffered_bytes"):
        stages.admission.admit(20, Deadline(30))
    undeclared = stages.admission.admit(0, Deadline(30))
    undeclared.receive(15)
    with pytest.raises(OverloadedError):
        undeclared.receive(1)
    other = stages.admission.admit(18, Deadline(30), caller="other")
    with pytest.raises(OverloadedError):
        stages.admission.admit(5, Deadline(30), caller="other")
    for permit in (declared, undeclared, other):
        permit.__exit__(None, None, None)
    assert stages.admission.buffered_bytes == 0


def test_failed_images_do_not_count_as_throughput(stages: Stages) -> None:
    """Images that the stages have not worked on leave the estimated throughput unchanged."""
    stages.overload(5)
    before = stages.admission.snapshot()["images_per_s"]
    permit, _ = stages.in_flight.pop()
    permit.finish_image(completed=False)
    assert stages.admission.snapshot()["images_per_s"] == before


def test_images_that_are_fetched_do_not_look_like_slow_stages(stages: Stages) -> None:
    """A slow web server makes nobody's wait longer, and takes at most a quarter of the places."""
    stages.overload(5)
    stages.work(10)
    permit = stages.admission.admit(0, Deadline(30))
    permit.add_images(50)
    with ExitStack() as fetching:
        for _ in range(50):
            fetching.enter_context(permit.fetch())
        with pytest.raises(OverloadedError, match="50 images by URL are already in flight"), permit.fetch():
            pass
        stages.clock.advance(20)
        stages.arrive(deadline_s=1)
    assert stages.admission.fetching == 0
    stages.clock.advance(20)  # now the images are in the stages, which have finished none of them
    with pytest.raises(OverloadedError, match="longer than the request's deadline"):
        stages.arrive(deadline_s=1)


def test_the_time_per_request_is_that_of_busy_stages(stages: Stages) -> None:
    """HAProxy is told how long a request with two images takes; nothing before enough requests have ended."""
    assert stages.admission.busy_request_s() is None
    for _ in range(400):
        while stages.admission.images < 20:
            stages.arrive(images=2)
        stages.work(0.1)
    busy_request_s = stages.admission.busy_request_s()
    assert busy_request_s == pytest.approx(0.02, rel=0.05)
    stages.work(10)
    stages.clock.advance(3)
    assert stages.admission.busy_request_s() in (None, pytest.approx(0.02, rel=0.05)), "idle time must not count"
