"""The Preprocessor decodes only images whose clients still wait."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from serve_app.config import LimitsConfig
from serve_app.deadline import Deadline
from serve_app.deployments import preprocessor
from serve_app.deployments.preprocessor import MAX_FETCHES
from serve_app.errors import DeadlineExceededError, OverloadedError, ServiceError, UnfetchableImageError
from serve_app.fetching.fetch import ImageFetcher
from serve_app.image_url import ImageUrl
from serve_app.images_by_url_config import ImagesByUrlConfig
from serve_app.messages import ClassifyRequest, ClassifyResult, ModelState, RemoteImage, RequestContext
from serve_app.model_card import ImageTransform, ModelCard
from tests.support.photos import make_photo
from tests.support.weights import MEAN, STD

TRANSFORM = ImageTransform(resize_px=112, crop_px=96, mean=MEAN, std=STD)
CARD = ModelCard(name="resnet18", version="1", labels=("cat", "dog"), transform=TRANSFORM, sha256="0" * 64)


class FakeClassifier:
    """A handle of a classify stage that answers at once."""

    def __init__(self) -> None:
        self.ping = SimpleNamespace(remote=self._state)

    async def _state(self) -> ModelState:
        return ModelState(card=CARD)

    async def remote(self, requests: list[ClassifyRequest[np.ndarray]], in_flight_hint: int) -> list[ClassifyResult]:
        return [ClassifyResult((0,), ("cat",), (1.0,), 1, 0, CARD.ref) for _ in requests]


@pytest_asyncio.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """A Preprocessor with one thread, made as Ray Serve makes it."""
    monkeypatch.setattr(preprocessor, "cores", lambda: 1)
    monkeypatch.setattr(preprocessor, "prepare_replica", lambda: lambda: None)
    kind = preprocessor.Preprocessor.func_or_class  # type: ignore[attr-defined] # Ray's
    made = kind.__new__(kind)
    await made.__init__(FakeClassifier(), TRANSFORM)
    yield made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that have been decoded."""
    files: list[bytes] = []
    real = preprocessor.preprocess

    def counting(encoded: bytes, *rest: Any) -> Any:
        files.append(encoded)
        return real(encoded, *rest)

    monkeypatch.setattr(preprocessor, "preprocess", counting)
    return files


def request(seed: int, timeout_s: float = 60) -> ClassifyRequest[bytes]:
    return ClassifyRequest(make_photo(seed), 1, context=RequestContext("req", seed, Deadline(timeout_s)))


async def test_an_expired_image_is_not_decoded(stage: Any, decoded: list[bytes]) -> None:
    """Of four images two have expired: two are decoded, two are deadline errors."""
    requests = [request(seed, 60 if seed % 2 else -1) for seed in range(4)]
    outcomes = await stage(requests, 4)
    assert [type(outcome) for outcome in outcomes] == [DeadlineExceededError, ClassifyResult] * 2
    assert decoded == [requests[1].image, requests[3].image]


async def test_a_mirrored_request_reaches_the_model_mirrored(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left and right change places in the crop; everything else of the request stays."""
    sent: list[ClassifyRequest[np.ndarray]] = []
    answer = stage._classifier.remote

    async def remote(requests: list[ClassifyRequest[np.ndarray]], in_flight_hint: int) -> list[ClassifyResult]:
        sent.extend(requests)
        return list(await answer(requests, in_flight_hint))

    monkeypatch.setattr(stage._classifier, "remote", remote)
    plain = dataclasses.replace(request(1), features="pooled", measure_stats=True)
    await stage([plain, dataclasses.replace(plain, mirror=True)], 2)
    np.testing.assert_array_equal(sent[1].image, sent[0].image[:, ::-1])
    assert sent[1].image.flags.c_contiguous
    assert not (sent[0].image == sent[1].image).all()
    assert [dataclasses.replace(each, image=b"") for each in sent] == [
        dataclasses.replace(plain, image=b"", mirror=mirror) for mirror in (False, True)
    ]


async def test_a_cancelled_call_decodes_no_further_image(
    stage: Any, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller is cancelled while the first of four images is decoded: the other three are skipped."""
    started, may_end = threading.Event(), threading.Event()
    counting = preprocessor.preprocess

    def waiting(*arguments: Any) -> Any:
        started.set()
        may_end.wait(60)
        return counting(*arguments)

    monkeypatch.setattr(preprocessor, "preprocess", waiting)
    call = asyncio.create_task(stage([request(seed) for seed in range(4)], 4))
    await asyncio.to_thread(started.wait, 60)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    may_end.set()
    (outcome,) = await stage([request(9)], 1)  # runs after what the only thread still has to do
    assert isinstance(outcome, ClassifyResult)
    assert decoded == [make_photo(0), make_photo(9)]


@pytest.mark.parametrize("calls_without_memory", [1, 2])
async def test_an_image_without_memory_leaves_the_others_alone(
    stage: Any, monkeypatch: pytest.MonkeyPatch, calls_without_memory: int
) -> None:
    """It is decoded again after the others; if it does not fit then either, it alone gets a retryable 503."""
    requests, order = [request(seed) for seed in range(3)], []
    real = preprocessor.preprocess

    def hungry(encoded: bytes, *rest: Any) -> Any:
        order.append(next(i for i, each in enumerate(requests) if each.image == encoded))
        if order[-1] == 1 and order.count(1) <= calls_without_memory:
            raise MemoryError
        return real(encoded, *rest)

    monkeypatch.setattr(preprocessor, "preprocess", hungry)
    outcomes = await stage(requests, 3)
    expected = ClassifyResult if calls_without_memory == 1 else OverloadedError
    assert [type(outcome) for outcome in outcomes] == [ClassifyResult, expected, ClassifyResult]
    assert order == [0, 1, 2, 1]


@pytest.mark.parametrize("error", [ValueError("a bug in the decoder"), RecursionError(), OSError(5, "/srv/secret")])
async def test_an_unexpected_error_stays_with_its_image(
    stage: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Any other exception fails one image, and its text stays in the log."""
    requests = [request(seed) for seed in range(3)]
    real = preprocessor.preprocess

    def failing(encoded: bytes, *rest: Any) -> Any:
        if encoded == requests[1].image:
            raise error
        return real(encoded, *rest)

    monkeypatch.setattr(preprocessor, "preprocess", failing)
    outcomes = await stage(requests, 3)
    assert [type(outcome) for outcome in outcomes] == [ClassifyResult, ServiceError, ClassifyResult]
    assert str(outcomes[1]) == "this image could not be decoded; the server's log has the reason"


async def test_statistics_without_memory_leave_the_others_alone(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the crop for the prediction log needs memory too."""
    calls: list[int] = []

    def hungry(pixels: np.ndarray) -> Any:
        calls.append(1)
        raise MemoryError

    monkeypatch.setattr(preprocessor, "image_stats", hungry)
    measured = dataclasses.replace(request(1), measure_stats=True)
    outcomes = await stage([request(0), measured], 2)
    assert [type(outcome) for outcome in outcomes] == [ClassifyResult, OverloadedError]
    assert len(calls) == 2


def remote_image(index: int = 0, timeout_s: float = 60) -> RemoteImage:
    """An image that has crossed from the ingress's process."""
    url, config = ImageUrl.parse("https://photos.example/"), ImagesByUrlConfig(allowed_hosts=("photos.example",))
    context = RequestContext("req", index, Deadline(timeout_s))
    image: RemoteImage = pickle.loads(pickle.dumps(RemoteImage(url, config, LimitsConfig(), context)))
    assert image.config == config
    return image


async def test_slow_web_servers_leave_places_for_decoding(stage: Any) -> None:
    """A replica refuses to fetch more than half as many images as it takes calls; the others are decoded meanwhile."""
    may_end = asyncio.Event()

    async def resolve(host: str, port: int) -> list[str]:
        await may_end.wait()
        return ["10.0.0.1"]

    stage._fetcher = ImageFetcher(resolve)
    fetches = [asyncio.create_task(stage.fetch(remote_image(index))) for index in range(MAX_FETCHES + 1)]
    assert preprocessor.Preprocessor.max_ongoing_requests >= 2 * MAX_FETCHES
    refused = await fetches[-1]
    assert isinstance(refused, OverloadedError)
    assert "already being fetched; retry later" in str(refused)
    (outcome,) = await stage([request(1)], 1)
    assert isinstance(outcome, ClassifyResult)
    may_end.set()
    outcomes = await asyncio.gather(*fetches[:-1])
    assert {type(outcome) for outcome in outcomes} == {UnfetchableImageError}
    assert isinstance(await stage.fetch(remote_image()), UnfetchableImageError)  # the places are free again


async def test_a_cancelled_fetch_frees_its_place(stage: Any) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return await asyncio.Future()

    stage._fetcher = ImageFetcher(resolve)
    fetch = asyncio.create_task(stage.fetch(remote_image()))
    await asyncio.sleep(0)
    assert stage._fetches == 1
    fetch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetch
    assert stage._fetches == 0
